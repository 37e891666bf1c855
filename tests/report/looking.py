"""Reads a page as a browser does, and fails where one would guess."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Seen(HTMLParser):
    """A page: its tags, text, ids and headings. Tags that do not match raise."""

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
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

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

    @property
    def badge(self) -> str:
        """Its class: how the run or comparison ended."""
        return next(one["class"] for one in self.all("span") if "badge" in one.get("class", "")).removeprefix("badge ")


def look(path: Path, *, figures: bool = False) -> Seen:
    """The page, after everything that is true of each page was checked; ``figures``: whether there are files."""
    page = Seen(path)
    assert page.raw.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert path.stat().st_size < 2_000_000
    assert not page.all("script")
    assert not page.all("link")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "data", "action", "srcset"):
                inside = value.startswith("data:image/") or (value[:1] == "#" and value[1:] in page.ids)
                assert inside, f"<{tag} {name}={value[:60]}> is not in the page"
    assert "url(http" not in page.raw
    assert "@import" not in page.raw
    assert all(one.get("alt") for one in page.all("img"))
    assert [tag for tag, _ in page.headings].count("h1") == 1
    shown = {one["id"].removeprefix("figure-") for one in page.all("figure")} if figures else set()
    for kind in ("png", "pdf"):
        assert {one.stem for one in (path.parent / "figures").glob(f"*.{kind}")} == shown
    return page
