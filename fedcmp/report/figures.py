"""All figures of the pages: lines, bars, dots and heat maps, drawn by matplotlib in one style."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcmp.staging import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1a1a1b"
PALETTE = ("#0072b2", "#d55e00", "#30a86c", "#b478f0", "#6c6c30", "#6c9c9c", "#905460", "#fc5460")
"""The blue and the vermilion of Okabe and Ito (Color Universal Design, 2008), and six that a search found to be far
from them and from each other for normal, protanope and deuteranope eyes, with a contrast of 3 or more on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
COOL, WARM = PALETTE[0], PALETTE[1]
WIDTH, HEIGHT, ROW = 4.2, 2.7, 0.26
"""Of a figure, and of one of its rows of bars, dots or cells; inches."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names of domains are no formulas
    "svg.fonttype": "none",  # text, in the browser's DejaVu Sans or Verdana: a quarter of the size of outlines
    "svg.hashsalt": "fedcmp",  # the same figure gives the same bytes
    "pdf.fonttype": 42,
}


class Line(NamedTuple):
    """One series; gaps are None or nan."""

    name: str
    """In the legend; empty: not there."""
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = COOL
    width: float = 1.6
    """0: only its band is drawn."""
    dash: Any = "-"
    alpha: float = 1.0
    band: tuple[Sequence[float], Sequence[float], float] | None = None
    """Low and high values of an area around it, and its opacity."""


class DotRow(NamedTuple):
    """One row of a figure of dots."""

    name: str
    dots: Sequence[float]
    """Its seeds, or its grid cells."""
    colour: str
    mean: float | None = None
    """Drawn as a large dot."""
    spread: float | None = None
    """Half the length of the bar through the mean."""
    ringed: float | None = None
    """A dot that gets a ring: the chosen one."""
    strong: bool = False
    """Its name in bold."""


def colour(place: int) -> str:
    """The colour of series ``place``, 0, 1, ..."""
    return PALETTE[place % len(PALETTE)]


def dash(place: int) -> Any:
    """Its line: solid until the colours begin again."""
    return DASHES[place // len(PALETTE) % len(DASHES)]


@contextmanager
def figure_style() -> Iterator[None]:
    """Inside, matplotlib draws in our style; outside, its settings are unchanged. Letters that the font lacks cause no
    warning: names come from the user's data."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def save_figure(figure: Figure, target: Any, **options: Any) -> None:
    """Saves a figure.

    Raises:
        RunFolderError: the file cannot be written.
    """
    with writing(target):
        figure.savefig(target, **options)
    figure.set_layout_engine("none")  # solved once: the next file has the same layout, several times as fast


def as_data_uri(figure: Figure) -> str:
    """The figure as SVG in a ``data:`` address, for the ``src`` of an ``<img>``."""
    content = io.BytesIO()
    save_figure(figure, content, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"


def draw_lines(
    lines: Sequence[Line],
    unit: str,
    *,
    level: tuple[float, str] | None = None,
    x_label: str = "round",
    limits: tuple[float | None, float | None] = (None, None),
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Curves, usually over rounds; at least one has a finite value.

    Args:
        level: value and name of a level line to compare with.
        limits: of the upright axis; None: as the data have it.
        ticks: places on the level axis, which then is logarithmic if they span more than a factor of four; None: it
            counts whole numbers.
    """
    figure, axes = _panel(HEIGHT + 0.08 * sum(bool(line.name) for line in lines), grid="y")
    for line in lines:
        if line.band is not None:
            low, high, alpha = line.band
            axes.fill_between(line.x, low, high, color=line.colour, alpha=alpha, linewidth=0)
    if level is not None:
        axes.axhline(level[0], color=INK, linewidth=0.9, linestyle="--", alpha=0.7, label=level[1])
    for line in lines:
        y = [math.nan if value is None else value for value in line.y]
        marker = "o" if line.width and (len(y) < 3 or ticks) else None
        axes.plot(
            line.x, y, color=line.colour, linewidth=line.width, linestyle=line.dash, alpha=line.alpha, marker=marker,
            markersize=4, label=line.name,
        )  # fmt: skip
    axes.set(xlabel=x_label, ylabel=unit, ylim=limits)
    if ticks is None:
        _count_whole(axes)
    else:
        if min(ticks) > 0 and max(ticks) >= 4 * min(ticks):
            axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    _add_legend(figure, axes)
    return figure


def draw_bars(names: Sequence[str], values: Sequence[float], show: Callable[[float], str]) -> Figure:
    """Horizontal bars, each with its value as text at its end; above 32 upright ones without names."""
    if len(names) > 32:
        figure, axes = _panel(HEIGHT, grid="y")
        axes.bar(range(len(values)), values, width=1.0, color=COOL, linewidth=0)
        _count_whole(axes)
        return figure
    figure, axes = _panel(0.4 + ROW * len(names))
    bars = axes.barh(range(len(values)), values, height=0.65, color=COOL)
    axes.bar_label(bars, [show(value) for value in values], padding=3, fontsize=8)
    axes.margins(x=0.2)
    _name_rows(axes, names)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def draw_stack(x: Sequence[int], parts: Mapping[str, Sequence[float]], unit: str) -> Figure:
    """Upright bars by round, made of parts: name -> height in each bar."""
    import numpy as np

    figure, axes = _panel(HEIGHT + 0.3, grid="y")
    below = np.zeros(len(x))
    for place, (name, heights) in enumerate(parts.items()):
        axes.bar(x, heights, bottom=below, color=colour(place), label=name, linewidth=0)
        below = below + heights
    axes.set(xlabel="round", ylabel=unit)
    _count_whole(axes)
    _add_legend(figure, axes)
    return figure


def draw_dots(
    rows: Sequence[DotRow], unit: str, bounds: Sequence[tuple[str, float]] = (), *, from_zero: bool = False
) -> Figure:
    """Rows of dots from top to bottom; ``bounds``: name and value of upright lines to compare with."""
    figure, axes = _panel(0.8 + 0.2 * bool(bounds) + ROW * len(rows), grid="x")
    for place, row in enumerate(rows):
        axes.plot(row.dots, [place] * len(row.dots), "o", color=row.colour, markersize=4, alpha=0.55)
        if row.mean is not None:
            axes.errorbar(row.mean, place, xerr=row.spread, fmt="o", color=row.colour, markersize=8, elinewidth=2)
        if row.ringed is not None:
            axes.plot([row.ringed], [place], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK)
    for place, (name, value) in enumerate(bounds):
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=DASHES[1 + place % 3], alpha=0.75, label=name)
    _name_rows(axes, [row.name for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.strong else "normal")
    axes.set(xlabel=unit, xlim=(0.0 if from_zero else None, None))
    _add_legend(figure, axes)
    return figure


def draw_heat(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[object],
    *,
    show: Callable[[float], str],
    limits: tuple[float | None, float | None] = (None, None),
    about_zero: bool = False,
    crossed: Sequence[tuple[int, int]] = (),
    across: str = "",
    down: str = "",
) -> Figure:
    """A heat map: the darker the more; with ``about_zero`` blue above zero and red below.

    Args:
        values: one row after the other; None or nan: empty.
        show: a value as text, written into the cells if they are few.
        limits: what the palest and the darkest cell are; None: as the data have it.
        crossed: cells (row, column) that get a cross.
        across, down: what columns and rows are.
    """
    import numpy as np

    cells = np.array([[math.nan if value is None else value for value in row] for row in values], float)
    written = len(rows) <= 40 and len(columns) <= 12
    names, step = [shorten(str(name)) for name in columns], 1 + (len(columns) - 1) // 20
    longest = max(map(len, names))
    turned = (longest + 1) * len(names[::step]) > 45  # letters that fit beside each other
    height = ROW * len(rows) if len(rows) <= 40 else 8.0
    figure, axes = _panel(height + 0.5 + (0.08 * longest if turned else 0.15))
    (low, high), cmap = limits, "Blues"
    if about_zero:
        high = float(np.nanmax(np.abs(cells), initial=0.0)) or 1.0
        low, cmap = -high, "RdBu"
    image = axes.imshow(cells, aspect="auto", interpolation="none", cmap=cmap, vmin=low, vmax=high, alpha=0.55)
    if written:
        for row, column in np.argwhere(np.isfinite(cells)):
            axes.text(column, row, show(float(cells[row, column])), ha="center", va="center", fontsize=7.5)
    else:
        figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    for row, column in crossed:
        axes.plot([column], [row], marker="x", color=INK, markersize=6)
    _name_rows(axes, rows)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90 if turned else 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=across, ylabel=down)
    return figure


def shorten(name: str, most: int = 28) -> str:
    """A long name, its middle left out.

    >>> shorten("a-very-long-name-of-a-domain", 12)
    'a-very…omain'
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"


def _panel(height: float, grid: Any = None) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    if grid:
        axes.grid(axis=grid)
    return figure, axes


def _count_whole(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    step = 1 + (len(names) - 1) // 40
    axes.set_yticks(range(0, len(names), step), [shorten(name) for name in names[::step]])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _add_legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    for columns in (3, 2, 1) if handles else ():
        legend = figure.legend(handles, [shorten(name, 32) for name in names], loc="outside lower left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
