"""Methods beside each other: every seed a small dot, the mean a large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedcmp.report.drawing.canvas import INK, SMALL, panel, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 20.0
"""Height of a row, in CSS pixels."""


class DotRow(NamedTuple):
    """One method."""

    name: str
    dots: Sequence[float]
    """Its seeds, or its grid cells."""
    colour: str
    mean: float | None = None
    """Drawn as a large dot."""
    spread: float | None = None
    """Half the length of the bar through the mean."""
    ringed: float | None = None
    """A dot that gets a ring: what was chosen."""
    strong: bool = False
    """Its name in bold."""


def draw_dots(
    rows: Sequence[DotRow], unit: str, bounds: Sequence[tuple[str, float]] = (), *, from_zero: bool = False
) -> Figure:
    """Rows from top to bottom.

    Args:
        rows: at least one.
        unit: of the axis.
        bounds: name and value of lines to compare with, their names above the axes.
        from_zero: amounts; losses are none.
    """
    figure, axes = panel(height=46 + 15 * len(bounds) + ROW * len(rows), grid="x")
    for place, row in enumerate(rows):
        axes.plot(
            row.dots, [place] * len(row.dots), "o", color=row.colour, markersize=4.5, alpha=0.55, markeredgewidth=0
        )
        if row.mean is not None:
            if row.spread:
                axes.plot(
                    [row.mean - row.spread, row.mean + row.spread], [place, place], color=row.colour, linewidth=2.2
                )
            axes.plot([row.mean], [place], "o", color=row.colour, markersize=8.5, markeredgewidth=0)
        if row.ringed is not None:
            axes.plot([row.ringed], [place], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [shorten(row.name) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.strong else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(unit, fontsize=SMALL, labelpad=3)
    low, high = axes.get_xlim()
    low, high = min([low, *(value for _, value in bounds)]), max([high, *(value for _, value in bounds)])
    margin = 0.03 * (high - low) if bounds else 0.0
    axes.set_xlim(0.0 if from_zero else low - margin, high + margin)
    for place, (name, value) in enumerate(bounds):
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), alpha=0.75)
        left = value > (low + high) / 2
        axes.annotate(
            name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 13 * place),
            textcoords="offset points", ha="right" if left else "left", va="bottom", fontsize=SMALL,
        )  # fmt: skip
    return figure
