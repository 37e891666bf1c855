"""One comparison at a time in a folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcmp.errors import RunFolderError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder while the block runs.

    The operating system lets go of the lock when its process ends, however it ends. On some network file systems it
    does not reach beyond one host, so the file also says who has it: of another host's process nobody here can tell
    whether it lives.

    Raises:
        RunFolderError: another process has it; the message says which.
    """
    path = folder / ".lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(
                f"{folder} is being worked on by {_holder(path)}; its tables so far are in {folder / 'table.md'}"
            ) from error
        host = _owner(path).get("host", socket.gethostname())
        if host != socket.gethostname():
            raise RunFolderError(
                f"{folder} is being worked on by {_holder(path)}, or that ended without a word; if it is gone, remove "
                f"{path}"
            )
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        try:
            yield
        finally:
            _write(file, "")
    finally:
        os.close(file)


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)


def _owner(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(path: Path) -> str:
    owner = _owner(path)
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"
