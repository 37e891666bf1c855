"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Cell = TypeVar("Cell")


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
