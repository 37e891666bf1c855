"""Curves over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcmp.report.drawing.canvas import HEIGHT, INK, SMALL, panel, whole_numbers
from fedcmp.report.drawing.labels import label_ends, room_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Line(NamedTuple):
    """One series; gaps are None or nan."""

    name: str
    """Written at its end; empty: no label."""
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    width: float = 1.6
    dash: Any = "-"
    alpha: float = 1.0


class Band(NamedTuple):
    """An area between two series."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    alpha: float = 0.18


class Level(NamedTuple):
    """A horizontal line to compare with."""

    y: float
    name: str = ""


def draw_lines(
    lines: Sequence[Line],
    unit: str,
    *,
    bands: Sequence[Band] = (),
    levels: Sequence[Level] = (),
    x_label: str = "round",
    limits: tuple[float | None, float | None] = (None, None),
    least_height: float = HEIGHT,
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Lines with their names at their ends.

    Args:
        lines: at least one with a finite value.
        unit: of the upright axis.
        bands, levels: drawn behind the lines.
        x_label: what the other axis counts.
        limits: of the upright axis; None: as the data have it.
        least_height: in CSS pixels; many names make the panel higher.
        ticks: places on the level axis, which then is logarithmic if they span more than a factor of four; None: it
            counts whole numbers.
    """
    named = [line for line in lines if line.name and _finite(line)]
    height = room_for(len(named) + len(levels), least_height)
    figure, axes = panel(unit, height=height)
    for band in bands:
        axes.fill_between(band.x, band.low, band.high, color=band.colour, alpha=band.alpha, linewidth=0)
    for level in levels:
        axes.axhline(level.y, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
    for line in lines:
        kept = _finite(line)
        marker = "o" if len(kept) < 3 or ticks else None  # one or two points are no curve that could be seen
        y = [math.nan if value is None else value for value in line.y]
        axes.plot(
            line.x, y, color=line.colour, linewidth=line.width, linestyle=line.dash, alpha=line.alpha, marker=marker,
            markersize=4,
        )  # fmt: skip
    _limit(axes, limits)
    _ticks(axes, ticks)
    axes.set_xlabel(x_label, fontsize=SMALL, labelpad=2)
    ends = [(_finite(line)[-1], line.name, line.colour) for line in named]
    label_ends(axes, [*ends, *((level.y, level.name, INK) for level in levels if level.name)], height)
    return figure


def _limit(axes: Any, limits: tuple[float | None, float | None]) -> None:
    axes.margins(x=0.015)
    low, high = axes.get_ylim()
    low, high = low if limits[0] is None else limits[0], high if limits[1] is None else limits[1]
    axes.set_ylim(low, high)


def _ticks(axes: Any, ticks: Sequence[float] | None) -> None:
    if ticks is None:
        return whole_numbers(axes)
    if min(ticks) > 0 and max(ticks) >= 4 * min(ticks):
        axes.set_xscale("log")
    axes.minorticks_off()
    axes.margins(x=0.06)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return None


def _finite(line: Line) -> list[float]:
    return [value for value in line.y if value is not None and math.isfinite(value)]
