"""What code runs here: its version and, where it can be known, its commit."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

STAMP = "_commit.txt"
"""In this folder: the commit of a built package, written by setup.py. A checkout has none and asks git."""


@cache
def commit() -> str | None:
    """The commit of the code that runs; None: unknown.

    Where files differ from it, ``-dirty-`` and a digest of this package's source follow.
    """
    here = Path(__file__)
    stamp = here.with_name(STAMP)
    if stamp.is_file():
        return stamp.read_text(encoding="utf-8").strip() or None
    try:
        for words in (
            ["ls-files", "--error-unmatch", here.name],  # an installed copy may be inside another repository
            ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            command = ["git", "-C", str(here.parent), *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = done.stdout.strip()
    if found.endswith("-dirty"):
        source = b"".join(path.read_bytes() for path in sorted(here.parent.rglob("*.py")))
        found += f"-{hashlib.sha256(source).hexdigest()[:8]}"
    return found or None


def described(version: str, found: str | None) -> str:
    """What ``fedcmp --version`` says.

    >>> described("1.0.0", "0123456789abcdef0123456789abcdef01234567-dirty-89abcdef")
    'fedcmp 1.0.0 (commit 0123456-dirty-89abcdef)'
    >>> described("1.0.0", None)
    'fedcmp 1.0.0'
    """
    if found is None:
        return f"fedcmp {version}"
    digest, dash, state = found.partition("-")
    return f"fedcmp {version} (commit {digest[:7]}{dash}{state})"
