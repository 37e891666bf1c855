"""The ranks of a run that this process starts and waits for, while it has other runs to do."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedcmp.distributed.launch import LaunchConfig, start_ranks
from fedcmp.lifetime import end_with_parent, stop_on_signal


def run_ranks(config: LaunchConfig, arguments: Sequence[str], log: Path) -> int | None:
    """As ``start_ranks``, in a process of its own, which ends with this one, however this ends.

    A signal that asks this process to stop is passed on, once: the ranks stop at the end of their round.

    Args:
        config, arguments: as for ``start_ranks``.
        log: the file that gets all that they print, in place of what it had.

    Returns:
        As ``start_ranks``; None: this process was asked to stop.
    """
    process = multiprocessing.get_context("spawn").Process(target=_start, args=(config, arguments, log))
    told = False
    with stop_on_signal() as asked:
        process.start()
        try:
            while process.is_alive():
                process.join(0.2)
                if asked() and not told:
                    process.terminate()
                    told = True
        finally:
            process.kill()
        return None if asked() else process.exitcode


def _start(config: LaunchConfig, arguments: Sequence[str], log: Path) -> None:
    end_with_parent()
    os.setsid()  # Ctrl-C reaches all processes of a terminal: the one that waits decides
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(start_ranks(config, arguments))
