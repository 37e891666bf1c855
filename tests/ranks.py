"""Forked ranks of a gloo group, and a team of them, for tests."""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fedcmp.distributed.strategy import shard_layers
from fedcmp.distributed.team import Groups, make_topology


class RankError(RuntimeError):
    """A rank raised; its traceback is the message."""


class Ranks(Groups):
    """A team on the process group that ``run_ranks`` has made."""

    def __init__(self, group_size: int, in_step: bool = False) -> None:
        strategy: Any = type("Strategy", (), {})()
        strategy.topology = make_topology(dist.get_world_size(), group_size)
        strategy.global_rank, strategy.root_device = dist.get_rank(), torch.device("cpu")
        own = None
        for group in range(strategy.topology.num_groups):
            made = dist.new_group(list(strategy.topology.members(group)))
            own = made if group == strategy.topology.group(strategy.global_rank) else own
        strategy.sum_in_group = lambda tensor: (dist.all_reduce(tensor, group=own), tensor)[1]
        strategy.shard = lambda layers: shard_layers(layers, own, "cpu")
        super().__init__(strategy, in_step)


def run_ranks(fn: Callable[[], Any], world_size: int, timeout: float = 60.0) -> list[Any]:
    """Calls ``fn`` on each rank of a gloo group and returns what each returned, by rank.

    The ranks are forked, so that ``fn`` may be a closure over anything and starts at once; results go through
    ``torch.save``. No process is left behind.

    Raises:
        RankError: a rank raised, or died.
        TimeoutError: a rank was not done after ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        ranks: list[BaseProcess] = [
            context.Process(target=_work, args=(fn, rank, world_size, Path(folder), timeout), daemon=True)
            for rank in range(world_size)
        ]
        try:
            with warnings.catch_warnings():
                # newer Pythons warn of threads at every fork; the ranks use none of the parent's
                warnings.simplefilter("ignore", DeprecationWarning)
                for process in ranks:
                    process.start()
            _wait(ranks, Path(folder), time.monotonic() + timeout)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _wait(ranks: list[BaseProcess], folder: Path, deadline: float) -> None:
    running = list(ranks)
    while running:
        sentinels = [process.sentinel for process in running]
        if not multiprocessing.connection.wait(sentinels, max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"{len(running)} of {len(ranks)} ranks were not done in time")
        running = [process for process in running if process.exitcode is None]
        # a rank that raises breaks the collectives of the others: what it said, it said first
        for failed in sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns):
            raise RankError(f"rank {failed.stem}:\n{failed.read_text()}")
        for rank, process in enumerate(ranks):
            if process.exitcode:
                raise RankError(f"rank {rank} ended with {process.exitcode}")


def _work(fn: Callable[[], Any], rank: int, world_size: int, folder: Path, timeout: float) -> None:
    try:
        torch.set_num_threads(1)
        if sys.platform == "linux":  # the host's own name may lead nowhere
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(folder / "store"), world_size)
        limit = datetime.timedelta(seconds=0.8 * timeout)  # a rank that waits in vain says where, before the end
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
        result = fn()
        partial = folder / f"{rank}.partial"
        torch.save(result, partial)
        partial.rename(folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)
