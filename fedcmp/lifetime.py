"""What ends a process: a signal that asks, the process that started it, or its launcher."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ASKING = (signal.SIGUSR1, signal.SIGTERM)
"""They ask a run to stop at the end of its round, where nothing is lost. SLURM sends the first before a time limit
(``--signal=USR1@seconds``), most schedulers the second."""
OURS = "FEDCMP_LAUNCHES"
"""Variable of ranks whose launcher is a ``fedcmp`` process."""

_launchers: list[int] = []
"""The process that started this rank; 0: it had ended before."""


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """While the block runs, signals only set what the function returns; handlers of before come back after it.

    Outside the main thread no handler can be set, and the function returns False.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, lambda one, frame: asked.append(one)) for number in ASKING}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Ends this process at once when the one that started it (by ``multiprocessing``) has ended, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "for processes that a process has started"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def end_with_launcher() -> None:
    """Ends this rank within a second after torchrun (``fabric run`` is one), which started it, ended without telling
    it. The first rank of each node says so. A process that torchrun did not start is left alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    # a store that went with its launcher is warned of by C++, a page of frames each time; torch reads it when it loads
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    launcher = os.getppid()
    gone = launcher == 1 and not _runs_this_python(launcher)  # in a container torchrun itself may be process 1

    _launchers.append(0 if gone else launcher)

    def follow() -> None:
        while not launcher_gone():
            time.sleep(0.1)
        if os.environ.get("LOCAL_RANK") == "0":
            onward = "the run goes on from its last checkpoint with: fedcmp train --resume RUN"
            line = f"rank {os.environ['RANK']}: fedcmp: error: its launcher was killed, and the ranks end; {onward}\n"
            with suppress(OSError):
                os.write(2, line.encode())
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def launcher_gone() -> bool:
    """Whether the launcher of this rank has ended; errors that the rank meets then follow from it."""
    return any(os.getppid() != launcher for launcher in _launchers)


def end_launcher() -> None:
    """Ends torchrun and this rank after Ctrl-C, of which torchrun would show pages; ``fedcmp`` as launcher does not."""
    if os.environ.get("LOCAL_RANK") == "0" and "TORCHELASTIC_RUN_ID" in os.environ and OURS not in os.environ:
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(130)


def _runs_this_python(process: int) -> bool:
    try:
        return os.path.samefile(f"/proc/{process}/exe", sys.executable)
    except OSError:
        return False
