"""What a computation has found, kept on disk for the next process, where finding it takes as long as starting does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


def remembered(find: Callable[[], Any], *inputs: object) -> Any:
    """What ``find`` returns, or what it has returned in an earlier process to the same inputs.

    Another version of torch, transformers or a file of fedcmp is another input. Files are in ``~/.cache/fedcmp``
    (``$XDG_CACHE_HOME/fedcmp``) and may be removed at any time.

    Args:
        find: a pure function; returns what JSON can hold. None and errors are not kept.
        inputs: all that ``find`` depends on, told apart by their ``repr``.
    """
    name = hashlib.sha256(repr((_code(), inputs)).encode()).hexdigest()
    path = cache_folder() / f"{name}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    found = find()
    if found is not None:
        with suppress(OSError):  # where it cannot be kept, it is found again
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")  # all ranks may write at once
            partial.write_text(json.dumps(found), encoding="utf-8")
            partial.replace(path)
    return found


def cache_folder() -> Path:
    """Where files are kept that may be lost."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedcmp"


@cache
def _code() -> str:
    """A hash of the code that finds things."""
    digest = hashlib.sha256(repr([version(name) for name in ("torch", "transformers")]).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
