"""Ends a run of the demo with its first training step, and prints what went before it (see startup.py).

    python benchmarks/first_step.py train                                              # as `fedcmp train`
    python benchmarks/first_step.py cell                                               # the second run of a process
    python benchmarks/first_step.py parts                                              # as train; `tower SECONDS`, too
    fabric run --accelerator=cpu --devices=2 benchmarks/first_step.py train            # a line of each rank

A line is ``first step WALL PROCESSOR``: seconds of this process, from its start or from that of the second run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

import torch

from fedcmp.cli import main

BRIEF = ("federation.rounds=1", "federation.local_steps=1", "evaluation.test=false", "run.figures=false")


def end_at_first_step(wall: float, used: float) -> None:
    """The first backward pass from now on is the last thing that this process does.

    Args:
        wall: seconds on ``time.monotonic`` at the start.
        used: processor seconds that this process had used by then.
    """
    real = torch.Tensor.backward

    def last(self: torch.Tensor, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        print(f"first step {time.monotonic() - wall} {sum(os.times()[:2]) - used}", flush=True)
        os._exit(0)

    torch.Tensor.backward = last  # type: ignore[method-assign]


def process_start() -> float:
    """When this process began, on ``time.monotonic`` of Linux."""
    with open("/proc/self/stat") as file:
        ticks = file.read().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def cell(folder: str) -> None:
    """Two runs of one setting and seed in one process, as a comparison has them."""
    from fedcmp.config import load_config
    from fedcmp.runs.parts import Kept
    from fedcmp.runs.train import train

    keep = Kept()
    for number in range(2):
        if number:
            end_at_first_step(time.monotonic(), sum(os.times()[:2]))
        words = [*BRIEF, f"run.dir={folder}/{number}", f"data.cache_dir={folder}/features"]
        train(load_config(None, words), keep=keep)


def time_tower() -> None:
    """Prints seconds of what the tower sees, before the first step."""
    from fedcmp.runs import parts

    real = parts.see

    def see(*args: Any, **options: Any) -> Any:
        t0 = time.monotonic()
        seen = real(*args, **options)
        print(f"tower {time.monotonic() - t0}", flush=True)
        return seen

    parts.see = see


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as own:
        if sys.argv[1] == "cell":
            cell(own)
        if sys.argv[1] == "parts":
            sys.argv[1] = "train"
            time_tower()
        end_at_first_step(process_start(), 0.0)
        sys.exit(main([*sys.argv[1:]]))
