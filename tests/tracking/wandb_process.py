"""A run in a process of its own: FOLDER MODE FIRST LAST HOW. Its rounds FIRST to LAST, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import wandb

from fedcmp.tracking.tracker import JsonlTracker, Trackers
from fedcmp.tracking.wandb import WandbConfig, WandbTracker


def main(folder: Path, mode: str, first: int, last: int, how: str) -> None:
    config = WandbConfig(mode, finish_seconds=2.0)
    tracker = Trackers(JsonlTracker(folder / "metrics.jsonl"), WandbTracker(config, "name", folder, {}))
    if how == "wandb is killed":
        core = wandb.setup()._connection._proc._process  # type: ignore[union-attr]
        core.kill()
        core.wait()
    for number in range(first, last + 1):
        tracker.log({"round": number, "samples_seen": 8 * number, "val/loss": 4.0 - number})
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.close({"exit": how})


if __name__ == "__main__":
    folder, mode, first, last, how = sys.argv[1:]
    main(Path(folder), mode, int(first), int(last), how)
