"""A process that another one started ends with it."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process when the one that started it (by ``multiprocessing``) has ended, however that ended; it may be
    gone already. Nothing is tidied up: nobody is left who would ask for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "for processes that a process has started"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
