"""Numbers, names and tables as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

from fedcmp.measures import metric

Cell = TypeVar("Cell")
BOUNDS = {"centralized": "Centralized", "local": "Local only"}


def method(name: str) -> str:
    """A method's name as its paper writes it.

    >>> method("fedavgm"), method("my-method")
    ('FedAvgM', 'my-method')
    """
    from fedcmp.aggregation.presets import PRESETS  # torch

    return PRESETS[name].title if name in PRESETS else BOUNDS.get(name, name)


def measured(key: str, value: Any) -> str:
    """A metric's value, written as its unit asks for.

    >>> measured("test/loss", 1.23456), measured("test/digits_named", 0.28), measured("seconds/total", 75)
    ('1.235', '28.0%', '1.2 min')
    """
    if not is_number(value):
        return "–"
    shown = {"share": lambda one: f"{one:.1%}", "seconds": duration, "bytes": lambda one: human(round(one))}
    return shown.get(metric(key).unit, count if isinstance(value, int) else number)(value)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names as a sentence has them.

    >>> listed(["a", "b", "c"]), listed(["a"]), listed(["a", "b", "c", "d"], most=2)
    ('a, b and c', 'a', 'a, b and 2 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def number(value: Any, digits: int = 3) -> str:
    """A number with so many decimals; a dash where there is none.

    >>> number(1.23456), number(-0.5, 1), number(None), number(float("nan"))
    ('1.235', '−0.5', '–', '–')
    """
    if not is_number(value):
        return "–"
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def count(value: Any) -> str:
    """A whole number.

    >>> count(12345), count(None)
    ('12,345', '–')
    """
    return f"{int(value):,}" if is_number(value) else "–"


def duration(seconds: Any) -> str:
    """Seconds for people.

    >>> duration(5.81), duration(0.0123), duration(75), duration(9000), duration(None)
    ('5.8 s', '12 ms', '1.2 min', '2.5 h', '–')
    """
    if not is_number(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{1000 * seconds:.0f} ms"
    return f"{seconds / 60:.1f} min" if seconds < 3597 else f"{seconds / 3600:,.1f} h"


def p_value(p: Any) -> str:
    """A p-value in a column of its own.

    >>> p_value(0.0123), p_value(0.0000123), p_value(None)
    ('0.012', '< 0.001', '–')
    """
    return "< 0.001" if is_number(p) and p < 0.0005 else number(p)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether there is a finite number to show; truth values are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def identifier(name: str) -> str:
    """Letters, digits and hyphens for a file name or an id.

    >>> identifier("domain/full (mixed) <b>"), identifier("…")
    ('domain-full-mixed-b', 'x')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"


def human(size: int | None) -> str:
    """Bytes for people, in powers of ten.

    >>> human(1_234_567), human(999), human(None)
    ('1.2 MB', '999 B', 'unknown')
    """
    if size is None:
        return "unknown"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Columns aligned: text to the left, numbers to the right with three decimals.

    >>> print(table([["digits", 1.5, 12], ["all", 2.0, None]], header=["domain", "loss", "n"]))
    domain   loss   n
    ------  -----  --
    digits  1.500  12
    all     2.000   -
    """
    lines = [list(header)] if header else []
    lines += [list(map(_text, row)) for row in rows]
    if header:
        lines.insert(1, ["-" * max(map(len, column)) for column in zip(*lines, strict=True)])
    columns = []
    for place, column in enumerate(zip(*lines, strict=True)):
        cells, width = [row[place] for row in rows], max(map(len, column))
        right = any(isinstance(one, int | float) for one in cells) and not any(isinstance(one, str) for one in cells)
        columns.append([one.rjust(width) if right else one.ljust(width) for one in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """The same as a Markdown table.

    >>> print(markdown([["digits", 1.5]], ["domain", "loss"]))
    | domain | loss |
    |---|---|
    | digits | 1.500 |
    """
    lines = [header, *(list(map(_text, row)) for row in rows)]
    first, *others = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([first, "|---" * len(header) + "|", *others])


def known_columns(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], unknown: Sequence[object] = (None,)
) -> tuple[list[str], list[list[Cell]]]:
    """A table without the columns in which all cells are ``unknown``.

    >>> known_columns(["run", "a", "b"], [["x", None, 1.0], ["y", None, None]])
    (['run', 'b'], [['x', 1.0], ['y', None]])
    """
    known = [place for place in range(len(header)) if any(row[place] not in unknown for row in rows)]
    return [header[place] for place in known], [[row[place] for place in known] for row in rows]


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
