"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Columns aligned: text to the left, numbers to the right with three decimals.

    >>> print(table([["digits", 1.5, 12], ["all", 2.0, None]], header=["domain", "loss", "n"]))
    domain   loss   n
    ------  -----  --
    digits  1.500  12
    all     2.000   -
    """
    lines = [list(header), *(list(map(_text, row)) for row in rows)] if header else [list(map(_text, r)) for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [
        any(isinstance(cell, (int, float)) for cell in column) and not any(isinstance(cell, str) for cell in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(widths)
    if header:
        lines.insert(1, ["-" * width for width in widths])
    padded = [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


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


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
