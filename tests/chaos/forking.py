"""Runs whose ranks are forked from this process, so that what is measured is the run and no start-up."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def fork_ranks(ranks: int, act: Callable[[int], None]) -> list[int]:
    """Forks a process a rank, which knows the others as a launcher would have told it; their process ids, by rank.

    Args:
        ranks: how many; one alone is told nothing.
        act: called with the rank, there; what it raises is printed, and the process ends with code 1.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if ranks > 1:
                    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                    told |= {"MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
                    os.environ |= {key: str(value) for key, value in told.items()} | {"TORCHELASTIC_RUN_ID": "chaos"}
                act(rank)
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(child)
    return children


def run_or_resume(run: Path, words: Sequence[str]) -> None:
    """Trains into a folder, or goes on if there is a run in it; errors go to a log beside it."""
    from fedcmp.config import load_config
    from fedcmp.runs.train import resume, train
    from fedcmp.tracking.progress import Progress

    sys.stderr = (run.parent / f"{run.name}.log").open("a")
    quiet = Progress(enabled=False)
    if (run / "config.yaml").is_file():
        resume(run, ["launch.devices=1"], progress=quiet)
    else:
        train(load_config(None, [*words, f"run.dir={run}"]), progress=quiet)


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
