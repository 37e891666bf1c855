"""A rank that dies or hangs is named by the others, in real process groups."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fedcmp.distributed.messages import together
from fedcmp.distributed.pulse import Pulse, is_broken
from fedcmp.distributed.wire import Wire
from fedcmp.errors import RankLost


def reports(folder: Path, size: int, act: Callable[[Wire], None]) -> dict[int, str]:
    """The error with which each rank of a group ends, by rank; of one that is lost, nothing."""
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            try:
                (folder / f"{rank}.partial").write_text(report(rank, size, folder / "store", act))
                (folder / f"{rank}.partial").rename(folder / f"{rank}.report")
                time.sleep(180)  # a rank that ends breaks the connections of those who are still looking
            finally:
                os._exit(0)
        children.append(child)
    end = time.monotonic() + 60
    while time.monotonic() < end and len(list(folder.glob("*.report"))) < size - 1:
        time.sleep(0.05)
    time.sleep(1)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {int(path.stem): path.read_text() for path in folder.glob("*.report")}


def report(rank: int, size: int, store: Path, act: Callable[[Wire], None]) -> str:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    shared = dist.FileStore(str(store), size)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=size, timeout=timedelta(seconds=50))
    pulse = Pulse(rank, size, store=shared, beat=0.2)
    try:
        act(Wire(dist.new_group(timeout=timedelta(seconds=3)), pulse=pulse))
        return "nothing happened"
    except RankLost as error:
        return f"{error.lost} by {vars(error)['met_on']}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        pulse.stop()


@pytest.mark.parametrize(("act", "lost", "reason", "met"), [
    (lambda: os.kill(os.getpid(), signal.SIGKILL), 1, "it has no pulse", True),
    (lambda: os.kill(os.getpid(), signal.SIGSTOP), 0, "it has no pulse", True),
    (lambda: time.sleep(60), 2, "it hangs", False),
], ids=["die", "stop", "hang"])  # fmt: skip
def test_a_rank_that_is_lost_is_named_by_all_others(
    tmp_path: Path, act: Callable[[], None], lost: int, reason: str, met: bool
) -> None:
    def exchange(wire: Wire) -> None:
        for number in range(3 * (1 + met)):
            if wire.rank == lost and number == 3 * met:
                act()
            wire.total(torch.ones(2))
            wire.collect(wire.rank)

    found = reports(tmp_path, 3, exchange)
    assert set(found) == {0, 1, 2} - {lost}
    for one in found.values():
        assert one.startswith(f"({lost},) by ("), one
        assert reason in one
    assert len({one.split(":")[0] for one in found.values()}) == 1, "one of them found it out, and all say so"


def test_errors_of_ours_are_no_lost_ranks(tmp_path: Path) -> None:
    def fail(wire: Wire) -> None:
        together(wire, lambda: [][wire.rank])

    found = reports(tmp_path, 2, fail)
    assert {one.split(": ")[-1].split(" (")[0] for one in found.values()} == {"list index out of range"}
    for text, broken in (
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:7", True),
        ("Timed out waiting 60000ms for recv operation to complete", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ):
        assert is_broken(RuntimeError(text)) == broken
