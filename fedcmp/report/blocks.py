"""The parts of a page, before they are HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcmp.report.figures import Line, draw_lines
from fedcmp.report.formatting import known_columns, listed, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """One figure."""

    name: str
    """Of its files and its id: letters, digits and hyphens; unique on a page."""
    title: str
    figure: Figure
    caption: str = ""
    """How to read it."""
    alt: str = ""
    """What it shows, in a sentence; empty: its title."""


def curves(
    name: str, title: str, lines: Sequence[Line], unit: str, caption: str = "", alt: str = "", **options: Any
) -> list[Picture]:
    """A figure of the lines that have values; none without any. ``options`` are those of ``draw_lines``."""
    lines = [line for line in lines if len(line.y)]
    if not lines:
        return []
    ends = listed([f"{line.name} {number(line.y[-1])}".strip() for line in lines if line.width])
    return [Picture(name, title, draw_lines(lines, unit, **options), caption, alt or f"{title}; at the end: {ends}.")]


class Grid(NamedTuple):
    """One table; text is left, numbers are right. Without rows it is not shown."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    """So many columns from the left have text, the others numbers."""
    strong: Sequence[int] = ()
    """The best rows: their names are bold."""
    summed: bool = False
    """The last row sums up the others."""
    faint: Sequence[int] = ()
    """Rows set back: bounds, failed cells."""
    folded: bool = False
    """Shown only on request."""

    def without_empty(self) -> Grid:
        """Only the columns in which at least one row has a value."""
        header, rows = known_columns(self.header, self.rows, ("", "–"))
        return self._replace(header=header, rows=rows)


def facts(title: str, values: Mapping[str, object]) -> Grid:
    """A table of names and values; those that are None are left out."""
    rows = [[name, str(value)] for name, value in values.items() if value is not None]
    return Grid(title, ["what", "value"], rows, text_columns=2)


class Card(NamedTuple):
    """A picture with its captions."""

    title: str
    source: str
    """A ``data:`` address; empty: no picture."""
    reference: str
    generated: str


class Listing(NamedTuple):
    """Text shown letter by letter: a command, a config."""

    title: str
    text: str
    folded: bool = False


class Section(NamedTuple):
    """One heading and what is under it. Without any content it is not shown."""

    name: str
    """Of its anchor."""
    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    grids: Sequence[Grid] = ()
    cards: Sequence[Card] = ()
    more_cards: Sequence[Card] = ()
    """Shown only on request."""
    listings: Sequence[Listing] = ()

    @property
    def is_small(self) -> bool:
        """Whether its tables have room beside its pictures."""
        narrow = all(len(grid.header) <= 4 for grid in self.grids)
        return 0 < len(self.pictures) <= 2 and 0 < len(self.grids) <= 2 and narrow


class Fact(NamedTuple):
    """A headline number."""

    label: str
    value: str
    note: str = ""


class Page(NamedTuple):
    """All of it."""

    kind: str
    title: str
    lead: str
    state: str
    """``finished``, ``unused`` (the pictures), ``stopped``, ``failed`` or ``running``: the colour of the badge."""
    badge: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    alarm: str = ""
    """What went wrong or is not there yet."""

    @property
    def columns(self) -> int:
        """How many facts are beside each other at most: 7, in rows that are about equally long."""
        return math.ceil(len(self.facts) / math.ceil(len(self.facts) / 7))

    def cleaned(self) -> Page:
        """Without empty tables and sections; ids are unique: names of two settings may differ in a sign only."""
        taken: set[str] = set()
        sections = []
        for section in self.sections:
            grids = [grid for grid in section.grids if grid.rows]
            if section.pictures or grids or section.cards or section.listings:
                pictures = [one._replace(name=_unique(one.name, "figure-", taken)) for one in section.pictures]
                sections.append(section._replace(name=_unique(section.name, "", taken), pictures=pictures, grids=grids))
        return self._replace(sections=sections)


def _unique(name: str, prefix: str, taken: set[str]) -> str:
    number, free = 1, name
    while prefix + free in taken:
        number, free = number + 1, f"{name}-{number + 1}"
    taken.add(prefix + free)
    return free
