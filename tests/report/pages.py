"""Reads a page as a browser would, and complains where one would guess."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Seen(HTMLParser):
    """A page: its tags, text, ids and addresses. Tags that do not match raise."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.headings: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> says {names} twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            tag, said = self.headings[-1]
            self.headings[-1] = tag, said + data.strip()

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str]:
        """The headings of sections."""
        return [text for tag, text in self.headings if tag == "h2"]


def look(path: Path, *, figures: bool = False) -> Seen:
    """The page, after everything that holds for each page was checked; ``figures`` tells whether there are files."""
    page = Seen(path)
    assert page.raw.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert any(one.get("name") == "viewport" for one in page.all("meta"))
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert "prefers-color-scheme: dark" in page.raw
    assert "@media print" in page.raw
    _is_alone(page)
    _can_be_heard(page)
    _figures_are_files(page if figures else None, path.parent)
    assert path.stat().st_size < 2_000_000
    return page


def _is_alone(page: Seen) -> None:
    """Nothing is fetched: addresses are in the page itself."""
    assert not page.all("script")
    assert not page.all("link")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert value.startswith(("data:image/", "#")), f"<{tag} {name}={value[:60]}>"
                if value.startswith("#"):
                    assert value[1:] in page.ids, f"{value} leads nowhere"
            for target in re.findall(r"url\(#([^)]+)\)", value):
                assert target in page.ids, f"url(#{target}) leads nowhere"
    assert "url(http" not in page.raw
    assert "@import" not in page.raw


def _can_be_heard(page: Seen) -> None:
    """Pictures have words; headings go down by one."""
    for one in page.all("img"):
        assert one.get("alt")
    for one in page.all("svg"):
        assert one["role"] == "img"
        assert len(one["aria-label"]) > 20
    depth = 0
    for tag, text in page.headings:
        assert text
        assert int(tag[1]) <= depth + 1, f"{text} jumps"
        depth = int(tag[1])
    assert [tag for tag, _ in page.headings].count("h1") == 1


def _figures_are_files(page: Seen | None, folder: Path) -> None:
    shown = {one["id"].removeprefix("figure-") for one in page.all("figure")} if page else set()
    for kind in ("png", "pdf"):
        assert {path.stem for path in (folder / "figures").glob(f"*.{kind}")} == shown
        assert all(path.stat().st_size > 1000 for path in (folder / "figures").glob(f"*.{kind}"))
