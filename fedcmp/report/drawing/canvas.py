"""The ground that all figures are drawn on: sizes, colours, type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1a1a1b"
"""Text and axes. On the page it becomes the colour of the page's text, so that it can be read on either ground."""
PALETTE = ("#0072b2", "#d55e00", "#30a86c", "#b478f0", "#6c6c30", "#6c9c9c", "#905460", "#fc5460")
"""Colours for series: the blue and the vermilion of Okabe and Ito (Color Universal Design, 2008), and six that a search
found to be far from them and from each other for normal, protanope and deuteranope eyes, among those with a contrast of
3 or more on the light and on the dark ground of the page."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""What tells two series of one colour apart."""
COOL, WARM = PALETTE[0], PALETTE[1]
"""The two ends of a scale."""
Grid = Literal["x", "y", "none"]
WIDTH, HEIGHT = 340.0, 218.0
"""Of a panel. One unit is a CSS pixel on the page and a point on paper."""
TEXT = 11.0
SMALL = 10.0


def settings() -> dict[str, Any]:
    """matplotlib's settings for a figure of ours."""
    lines = {"axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK, "axes.labelcolor": INK}
    return lines | {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same sizes on every machine
        "font.size": TEXT,
        "axes.titlesize": SMALL,
        "axes.labelsize": SMALL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "xtick.major.size": 3.0,
        "ytick.major.size": 3.0,
        "lines.solid_capstyle": "round",
        "text.parse_math": False,  # names of people's domains are no formulas
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": True,
        "figure.constrained_layout.h_pad": 0.03,
        "figure.constrained_layout.w_pad": 0.03,
        "svg.fonttype": "none",
        "svg.hashsalt": "fedcmp",
        "pdf.fonttype": 42,
    }


@contextmanager
def our_look() -> Iterator[None]:
    """Inside, matplotlib draws as our page does; outside, it is as it was."""
    from matplotlib import rc_context

    with rc_context(settings()):
        yield


def panel(unit: str = "", *, height: float = HEIGHT, width: float = WIDTH, grid: Grid = "y") -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        unit: what the upright axis counts; it stands above the axis, where it can be read without turning the head.
        height, width: in CSS pixels.
        grid: faint lines along ``"x"``, ``"y"`` or ``"none"``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    if unit:
        axes.set_title(unit, loc="left", fontsize=SMALL, alpha=0.75, pad=7)
    if grid != "none":
        axes.grid(axis=grid, color=INK, alpha=0.14, linewidth=0.7)
    return figure, axes


def whole_numbers(axes: Axes, axis: str = "x") -> None:
    """Ticks at whole numbers only: there is no round 2.5."""
    from matplotlib.ticker import MaxNLocator

    (axes.xaxis if axis == "x" else axes.yaxis).set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def colour(place: int) -> str:
    """The colour of the series at ``place``, 0, 1, ..."""
    return PALETTE[place % len(PALETTE)]


def dash(place: int) -> Any:
    """Its line: solid until the colours begin again."""
    return DASHES[place // len(PALETTE) % len(DASHES)]


def shade(share: float, hue: str) -> tuple[float, float, float, float]:
    """A heat map's cell: ``hue``, the more opaque the larger ``share`` in [0, 1]; text on it can be read anywhere."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(hue)
    return red, green, blue, 0.04 + 0.60 * min(1.0, max(0.0, share))


def shorten(name: str, most: int = 28) -> str:
    """A long name, its middle left out.

    >>> shorten("a-very-long-name-of-a-domain", 12)
    'a-very…omain'
    """
    if len(name) <= most:
        return name
    head = (most - 1 + 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"
