"""What a page is made of, before it is HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """One figure."""

    name: str
    """Of its files and ids: letters, digits and hyphens; unique on a page."""
    title: str
    figure: Figure
    alt: str
    """What it shows, for those who cannot see it: with numbers."""
    caption: str = ""
    """How to read it."""


class Grid(NamedTuple):
    """One table; text stands left, numbers right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    """So many columns from the left hold text, the others numbers."""
    strong: Sequence[int] = ()
    """The best rows: their names are bold."""
    summed: bool = False
    """The last row sums up the others."""
    faint: Sequence[int] = ()
    """Rows set back: bounds, failed cells."""
    folded: bool = False
    """Shown only on request."""


def without_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns in which at least one row has something to say.

    >>> without_empty(["a", "b"], [["x", "–"], ["y", "–"]])
    (['a'], [['x'], ['y']])
    """
    kept = [place for place in range(len(header)) if any(row[place] not in ("", "–") for row in rows)]
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]


class Card(NamedTuple):
    """A picture with what is said about it."""

    title: str
    source: str
    """A ``data:`` address; empty: no picture."""
    reference: str
    generated: str


class Listing(NamedTuple):
    """Text to be read as it is: a command, a config."""

    title: str
    text: str
    folded: bool = False


class Section(NamedTuple):
    """One heading and what stands under it."""

    name: str
    """Of its anchor."""
    title: str
    text: Sequence[str] = ()
    """Paragraphs."""
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
    """What happened, in a sentence or two."""
    state: str
    """``finished``, ``unused`` (the pictures), ``stopped``, ``failed`` or ``running``: how the badge looks."""
    badge: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    alarm: str = ""
    """What went wrong or is not there yet."""

    @property
    def columns(self) -> int:
        """How many facts stand beside each other at most: 7, in rows that are about equally long."""
        return math.ceil(len(self.facts) / math.ceil(len(self.facts) / 7))

    def with_own_names(self) -> Page:
        """The page, no two of its sections or pictures called the same: two settings may differ in a sign only."""
        sections, drawn = _Names(), _Names()
        return self._replace(
            sections=[
                section._replace(
                    name=sections.own(section.name),
                    pictures=[picture._replace(name=drawn.own(picture.name)) for picture in section.pictures],
                )
                for section in self.sections
            ]
        )


class _Names:
    def __init__(self) -> None:
        self._taken: set[str] = set()

    def own(self, name: str) -> str:
        number, free = 1, name
        while free in self._taken:
            number, free = number + 1, f"{name}-{number + 1}"
        self._taken.add(free)
        return free
