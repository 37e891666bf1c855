"""A rank that dies or hangs is named by the others, in real process groups."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fedcmp.distributed.messages import together
from fedcmp.distributed.pulse import Pulse, is_broken
from fedcmp.distributed.wire import Wire
from fedcmp.errors import DataError, RankLost

BEAT = 0.2


def keep_store(told: Path) -> int:
    """A process that keeps the store by which ranks meet, as torchrun's agent does; its id. ``told`` gets the port.

    Not this process: a store's server is a thread, and a rank forked beside a running thread may find a lock taken.
    """
    child = os.fork()
    if child == 0:
        try:
            keeper = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            told.with_suffix(".partial").write_text(str(keeper.port))
            told.with_suffix(".partial").rename(told)
            time.sleep(180)
        finally:
            os._exit(0)
    return child


def told(folder: Path, size: int, act: Callable[[Wire, Pulse], Any], seconds: float = 3.0) -> dict[int, str]:
    """What each rank of a group ends with after an exchange, by rank; of one that is lost, nothing."""
    address = folder / "port"
    children = [keep_store(address)]
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                said = say(rank, size, address, act, seconds)
            except BaseException:
                said = traceback.format_exc()
            (folder / f"{rank}.partial").write_text(said)
            (folder / f"{rank}.partial").rename(folder / f"{rank}.said")
            time.sleep(180)  # whoever ends first breaks the connections of those who are still looking
            os._exit(0)
        children.append(child)
    end = time.monotonic() + 60
    while time.monotonic() < end and len(list(folder.glob("*.said"))) < size - 1:
        time.sleep(0.05)
    time.sleep(1)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {int(path.stem): path.read_text() for path in folder.glob("*.said")}


def say(rank: int, size: int, address: Path, act: Callable[[Wire, Pulse], Any], seconds: float) -> str:
    """What one rank meets in the exchange."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while not address.exists():
        time.sleep(0.01)
    store = dist.TCPStore("127.0.0.1", int(address.read_text()), is_master=False)
    long, short = timedelta(seconds=50), timedelta(seconds=seconds)  # who waits in vain to meet says so, before the end
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=long)
    group = dist.new_group(timeout=short)
    pulse = Pulse(rank, size, store=store, beat=BEAT)
    try:
        act(Wire(group, pulse=pulse), pulse)
        return "nothing happened"
    except RankLost as error:
        return f"{error.lost} by {vars(error)['met_on']}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        pulse.stop()


def meet(wire: Wire) -> None:
    for _ in range(3):
        wire.total(torch.ones(2))
        wire.collect(wire.rank)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    time.sleep(60)


@pytest.mark.parametrize(("act", "lost", "reason", "met"), [
    (die, 1, "it died, or was stopped: it has no pulse", True),
    (stop, 0, "it died, or was stopped: it has no pulse", True),
    (hang, 2, "it hangs: it has a pulse, but did not come where the others waited", False),
], ids=["die", "stop", "hang"])  # fmt: skip
def test_a_rank_that_is_lost_is_named_by_all_others(
    tmp_path: Path, act: Callable[[], None], lost: int, reason: str, met: bool
) -> None:
    def exchange(wire: Wire, pulse: Pulse) -> None:
        if met:
            meet(wire)
        if wire.rank == lost:
            act()
        meet(wire)

    said = told(tmp_path, 3, exchange)
    assert set(said) == {0, 1, 2} - {lost}
    for one in said.values():
        assert one.startswith(f"({lost},) by ("), one
        assert f"rank {lost} was lost: {reason} (noticed by: " in one
        assert "fedcmp train --resume" in one
    assert len({one.split(":")[0] for one in said.values()}) == 1, "one of them found it out, and all say so"


def test_errors_of_ours_pass_at_once(tmp_path: Path) -> None:
    def fail(wire: Wire, pulse: Pulse) -> None:
        t0 = time.monotonic()
        try:
            together(wire, lambda: [][wire.rank])
        except IndexError as error:
            assert time.monotonic() - t0 < 2
            raise DataError(f"as it was: {error}") from error

    said = told(tmp_path, 2, fail)
    assert {one.split(" (")[0] for one in said.values()} == {"DataError: as it was: list index out of range"}


@pytest.mark.parametrize(("error", "broken"), [
    (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:7"), True),
    (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (DataError("gloo"), False),
])  # fmt: skip
def test_only_broken_exchanges_are_looked_into(error: Exception, broken: bool) -> None:
    assert is_broken(error) == broken
