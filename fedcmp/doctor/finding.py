"""What a check has found."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the doctor."""

    status: str
    """``ok``, ``warn`` (a run works, but not as it could) or ``fatal`` (it would fail)."""
    what: str
    mend: str = ""
    """What to do about it."""

    def line(self) -> str:
        """As it is printed.

        >>> Finding("warn", "no disk space", "make some").line()
        'warn   no disk space  -> make some'
        """
        return f"{self.status:<5}  {self.what}" + (f"  -> {self.mend}" if self.mend else "")


def ok(what: str, hint: str = "") -> Finding:
    """All is well."""
    return Finding("ok", what, hint)


def warn(what: str, mend: str) -> Finding:
    """A run works, but not as it could."""
    return Finding("warn", what, mend)


def fatal(what: str, mend: str) -> Finding:
    """A run would fail."""
    return Finding("fatal", what, mend)
