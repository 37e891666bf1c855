"""Names at the ends of lines, in place of a legend, and apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedcmp.report.drawing.canvas import SMALL, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 13.0
"""Pixels from one label to the next."""


def room_for(count: int, least: float) -> float:
    """The height of a panel in which ``count`` labels fit, in CSS pixels, at least ``least``."""
    return max(least, 64.0 + LINE * count)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Writes each name to the right of the axes, as near to its line's end as its neighbours let it.

    Args:
        axes: with their final limits.
        ends: the last value, name and colour of each line.
        height: of the panel, in CSS pixels.
    """
    low, high = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    inside = height - 58.0  # about what title and tick labels leave

    def share(value: float) -> float:
        import math

        if logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    ordered = sorted((min(1.0, max(0.0, share(value))), name, colour) for value, name, colour in ends)
    places = spread([place for place, _, _ in ordered], LINE / inside)
    for (wanted, name, colour), place in zip(ordered, places, strict=True):
        axes.plot(
            [1.005, 1.035, 1.05], [wanted, place, place],
            transform=axes.transAxes, color=colour, linewidth=1.6, clip_on=False,
        )  # fmt: skip
        axes.text(1.065, place, shorten(name), transform=axes.transAxes, fontsize=SMALL, va="center_baseline")


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least ``gap`` apart, as near as can be to the wanted ones (least squares), within [0, 1] if they fit.

    Args:
        wanted: in rising order.

    >>> spread([0.5, 0.5], 0.2), spread([0.0, 0.9], 0.2), spread([1.0, 1.0], 0.5)
    ([0.4, 0.6], [0.0, 0.9], [0.5, 1.0])
    """
    blocks: list[tuple[float, int]] = []  # neighbours that touch move as one: pool adjacent violators
    for number, place in enumerate(wanted):
        mean, size = place - number * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        blocks.append((mean, size))
    most = 1.0 - (len(wanted) - 1) * gap
    flat = [min(max(0.0, most), max(0.0, mean)) for mean, size in blocks for _ in range(size)]
    return [round(place + number * gap, 6) for number, place in enumerate(flat)]
