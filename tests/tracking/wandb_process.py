"""A run in a process of its own: FOLDER MODE FIRST LAST HOW. Its rounds FIRST to LAST, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fedcmp.tracking.tracker import JsonlTracker, Trackers
from fedcmp.tracking.wandb import WandbConfig, WandbTracker


def main(folder: Path, mode: str, first: int, last: int, how: str) -> None:
    config = WandbConfig(mode, finish_seconds=2.0)
    tracker = Trackers(JsonlTracker(folder / "metrics.jsonl"), WandbTracker(config, "name", folder, {}))
    for number in range(first, last + 1):
        tracker.log({"round": number, "samples_seen": 8 * number, "val/loss": 4.0 - number})
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.close({"exit": how})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
