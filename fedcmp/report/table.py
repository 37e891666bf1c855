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
    lines = [[_text(cell) for cell in row] for row in rows]
    everything = [list(header), *lines] if header else lines
    widths = [max(len(row[column]) for row in everything) for column in range(len(everything[0]))]
    numeric = [
        any(_is_number(row[column]) for row in rows) and not any(isinstance(row[column], str) for row in rows)
        for column in range(len(widths))
    ]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(cells).rstrip()

    method = ["  ".join("-" * width for width in widths)] if header else []
    return "\n".join([*([line(header)] if header else []), *method, *(line(row) for row in lines)])


def markdown(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """The same as a Markdown table.

    >>> print(markdown([["digits", 1.5]], ["domain", "loss"]))
    | domain | loss |
    |---|---|
    | digits | 1.500 |
    """
    lines = [list(header), ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
