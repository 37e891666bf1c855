"""Amounts beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fedcmp.report.drawing.canvas import COOL, SMALL, colour, panel, shorten, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 20.0
"""Height of a bar with its gap, in CSS pixels."""


def draw_amounts(names: Sequence[str], values: Sequence[float], show: Callable[[float], str]) -> Figure:
    """Horizontal bars, the number at the end of each: no axis is needed.

    Args:
        names, values: of the bars from top to bottom.
        show: a value as text.
    """
    figure, axes = panel(height=24 + ROW * len(names), grid="none")
    places = list(range(len(names)))
    axes.barh(places, values, height=0.62, color=COOL)
    largest = max(values, default=0.0) or 1.0
    for place, value in zip(places, values, strict=True):
        axes.text(value + largest * 0.02, place, show(value), va="center_baseline", fontsize=SMALL)
    axes.set_yticks(places, [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, largest * 1.28)
    axes.tick_params(length=0)
    axes.xaxis.set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def draw_stack(x: Sequence[int], parts: Mapping[str, Sequence[float]], unit: str, x_label: str = "round") -> Figure:
    """Upright bars made of parts; the legend stands above the axes.

    Args:
        x: where bars stand.
        parts: the height of each part in each bar.
        unit: of the heights.
    """
    rows = -(-len(parts) // 3)
    figure, axes = panel(unit, height=218.0 + 15 * rows)
    below = [0.0] * len(x)
    for place, (name, heights) in enumerate(parts.items()):
        axes.bar(x, heights, bottom=below, width=0.8, color=colour(place), label=name, linewidth=0)
        below = [one + other for one, other in zip(below, heights, strict=True)]
    whole_numbers(axes)
    axes.margins(x=0.02)
    axes.set_xlabel(x_label, fontsize=SMALL, labelpad=2)
    figure.legend(
        loc="outside upper left", ncols=3, frameon=False, handlelength=1.0, handleheight=0.9, columnspacing=1.2,
        handletextpad=0.5, borderaxespad=0.1,
    )  # fmt: skip
    return figure


def draw_columns(values: Sequence[float], unit: str, across: str) -> Figure:
    """Many upright bars, numbered from 0."""
    figure, axes = panel(unit)
    axes.bar(range(len(values)), values, width=1.0, color=COOL, linewidth=0)
    whole_numbers(axes)
    axes.tick_params(axis="x", length=0)
    axes.margins(x=0.02)
    axes.set_xlabel(across, fontsize=SMALL, labelpad=2)
    return figure
