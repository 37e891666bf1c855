"""A run in a process of its own: FOLDER MODE FIRST LAST HOW. Its rounds FIRST to LAST, and how it ends.

`kill` leaves W&B time to write all but the last round.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from fedcmp.tracking.tracker import JsonlTracker, Trackers
from fedcmp.tracking.wandb import WandbConfig, WandbTracker
from fedcmp.tracking.wandb.tracker import FLUSH_SECONDS


def main(folder: Path, mode: str, first: int, last: int, how: str) -> None:
    config = WandbConfig(mode, finish_seconds=2.0)
    tracker = Trackers(JsonlTracker(folder / "metrics.jsonl"), WandbTracker(config, "name", folder, {}))
    for number in range(first, last + 1):
        if how == "kill" and number == last:
            time.sleep(2 * FLUSH_SECONDS)
        tracker.log({"round": number, "samples_seen": 8 * number, "val/loss": 4.0 - number})
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("the disk is gone")
    tracker.close({"exit": how})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
