"""Tables as colours, with their numbers where there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedcmp.report.drawing.canvas import COOL, INK, SMALL, WARM, WIDTH, panel, shade, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 21.0
"""Height of a row whose numbers are written, in CSS pixels."""
LETTER = 6.3
"""Width of a letter, in CSS pixels, generously."""


def draw_heat(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    show: Callable[[float], str],
    lowest: float | None = None,
    highest: float | None = None,
    about_zero: bool = False,
    crossed: Sequence[tuple[int, int]] = (),
    across: str = "",
    down: str = "",
    width: float = WIDTH,
) -> Figure:
    """A heat map: the darker the more; with ``about_zero`` blue above zero and orange below.

    Args:
        values: one row after the other; None: empty.
        rows, columns: names.
        show: a value as text of up to five letters.
        lowest, highest: what the palest and the darkest cell stand for; None: as the data have it.
        crossed: cells (row, column) that get a cross.
        across, down: what columns and rows are.
        width: in CSS pixels.
    """
    known = [value for row in values for value in row if value is not None and math.isfinite(value)]
    low = min(known, default=0.0) if lowest is None else lowest
    high = max(known, default=1.0) if highest is None else highest
    names = [shorten(name, 24) for name in columns]
    cell = (width - LETTER * max(len(shorten(name)) for name in rows) - 24) / len(columns)
    written = cell >= LETTER * max((len(show(value)) for value in known), default=1) + 3 and len(rows) <= 40
    longest = max(map(len, names))
    turned = longest > 3 and cell < LETTER * longest + 4
    row = ROW if written or len(rows) <= 16 else max(5.0, 320.0 / len(rows))
    height = len(rows) * row + (5.5 * longest if turned else 12.0) + (38 if written else 52)
    figure, axes = panel(down, height=height, width=width, grid="none")
    picture = [[_colour(value, low, high, about_zero) for value in row] for row in values]
    axes.imshow(picture, interpolation="none", aspect="auto")
    if written:
        for at, line in enumerate(values):
            for place, value in enumerate(line):
                if value is not None and math.isfinite(value):
                    axes.text(place, at, show(value), ha="center", va="center_baseline", fontsize=SMALL - 0.5)
    else:
        _scale(axes, low, high, about_zero, show, len(rows) * row)
    for at, place in crossed:
        axes.plot([place], [at], marker="x", color=INK, markersize=min(7.0, cell / 2), markeredgewidth=1.3)
    _name(axes.yaxis, [shorten(name) for name in rows], _step(row, 12.0))
    _name(axes.xaxis, names, _step(cell, 13.0 if turned else LETTER * longest + 4))
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(across, fontsize=SMALL, labelpad=3)
    return figure


def _colour(value: float | None, low: float, high: float, about_zero: bool) -> tuple[float, float, float, float]:
    if value is None or not math.isfinite(value):
        return 0.0, 0.0, 0.0, 0.0
    if about_zero:
        reach = max(abs(low), abs(high)) or 1.0
        return shade(abs(value) / reach, COOL if value >= 0 else WARM)
    return shade((value - low) / (high - low) if high > low else 0.5, COOL)


def _scale(axes: Any, low: float, high: float, about_zero: bool, show: Callable[[float], str], inside: float) -> None:
    """A bar of colours above the map, its ends written beside it; ``inside`` is the map's height in CSS pixels."""
    reach = max(abs(low), abs(high))
    begin, end = (-reach, reach) if about_zero else (low, high)
    bar = axes.inset_axes([0.66, 1 + 7 / inside, 0.20, 8 / inside])
    bar.imshow(
        [[_colour(begin + (end - begin) * place / 40, begin, end, about_zero) for place in range(41)]],
        aspect="auto", interpolation="none",
    )  # fmt: skip
    bar.set_axis_off()
    for place, side, value in ((0.64, "right", begin), (0.88, "left", end)):
        axes.annotate(
            show(value), (place, 1 + 11 / inside), xycoords="axes fraction", ha=side, va="center_baseline",
            fontsize=SMALL - 0.5,
        )  # fmt: skip


def _name(axis: Any, names: Sequence[str], step: int) -> None:
    axis.set_ticks(range(0, len(names), step), names[::step])


def _step(room: float, needed: float) -> int:
    """Every how many names one can be written.

    >>> _step(20.0, 12.0), _step(7.0, 12.0), _step(1.0, 12.0)
    (1, 2, 20)
    """
    return next(base * 10**power for power in range(9) for base in (1, 2, 5) if base * 10**power * room >= needed)
