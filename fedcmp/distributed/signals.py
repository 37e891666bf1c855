"""SIGUSR1 and SIGTERM ask a run to stop at the end of its round, where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGUSR1, signal.SIGTERM)
"""SLURM sends the first before a time limit (``--signal=USR1@seconds``), most schedulers the second."""


class StopFlag:
    """Whether somebody asked. Calling it tells."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def ask(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Stop at the next safe point."""
        self._asked = True


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """A flag that the signals raise while the block runs; handlers of before come back after it.

    Outside the main thread no handler can be set, and the flag is never raised.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, flag.ask) for number in ASKING}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
