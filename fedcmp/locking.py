"""One process writes a folder at a time."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcmp.errors import RunFolderError

log = logging.getLogger(__name__)
LOCK = ".lock"
"""The file in the folder that is locked; it says which process was the last to write there."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for it out of the folder while the block runs.

    The operating system frees the lock when the process ends, however it ends; children that it forked do not keep it.

    Raises:
        RunFolderError: another process has the folder, or no file can be written there.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        owner = path.read_text() or "another process"
        wait = "one process at a time; wait until it has ended, then give the same command"
        raise RunFolderError(f"{folder} is being written by {owner}: {wait}") from error
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error
        log.warning("the file system of %s has no locks: take care that one process at a time writes there", folder)
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path | None) -> None:
    """Refuses a folder that another process writes, before anything slow is imported; ``locked`` decides later.

    Raises:
        RunFolderError: as ``locked``.
    """
    if folder is not None and os.access(folder / LOCK, os.W_OK):
        with locked(folder):
            pass
