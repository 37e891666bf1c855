"""The site is built without complaint, and a browser that shows it asks no other server for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written import ROOT

ADDRESS = re.compile(r"^(https?:)?//", re.IGNORECASE)
LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src", "srcdoc"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
    "input": ("src",),
    "body": ("background",),
    "base": ("href",),
}
"""Attributes that make a browser load something; those of ``link`` depend on its rel."""
NAMED_ONLY = {"canonical", "prev", "next", "alternate", "edit", "license", "author", "me"}
"""What a ``link`` may name without anything being loaded."""
NEVER_ASKED = {"https://unpkg.com/mermaid", "https://unpkg.com/resize-observer-polyfill", "https://api.github.com"}
"""Addresses inside the theme's script that it asks only for diagrams, for very old browsers, and for `repo_url`."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loads(HTMLParser):
    """What a page would load, and what its styles say."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.styles = ""
        self.classes: set[str] = set()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self._in_style = tag == "style"
        self.styles += given.get("style", "") + "\n"
        self.classes |= set(given.get("class", "").split())
        self.loaded += [given[name] for name in LOADED.get(tag, ()) if name in given]
        if tag == "link" and not set(given.get("rel", "").split()) <= NAMED_ONLY:
            self.loaded.append(given.get("href", ""))

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles += data + "\n"


def addresses_in_styles(text: str) -> list[str]:
    named = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
    return [one or other for one, other in named if ADDRESS.match(one or other)]


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"study", "results", "changelog", "404"}
    assert {path.stem for path in site.glob("*.html")} == pages


def test_no_page_loads_from_elsewhere(site: Path) -> None:
    count = 0
    for path in site.rglob("*.html"):
        page = Loads()
        page.feed(path.read_text(encoding="utf-8"))
        assert len(page.loaded) > 5, f"{path.name}: nothing was found, not even the theme's own files"
        outside = [one for one in page.loaded if ADDRESS.match(one)] + addresses_in_styles(page.styles)
        assert not outside, f"{path.name} loads {outside}"
        assert "mermaid" not in page.classes, f"{path.name}: diagrams of Mermaid need a script from elsewhere"
        for one in page.loaded:
            here = one.partition("?")[0].partition("#")[0]
            if here and not here.startswith(("data:", "/")):
                assert (path.parent / here).exists(), f"{path.name} loads {one}, which is not there"
        count += 1
    assert count > 15


def test_no_style_loads_from_elsewhere(site: Path) -> None:
    styles = list(site.rglob("*.css"))
    assert len(styles) > 2
    for path in styles:
        assert not addresses_in_styles(path.read_text(encoding="utf-8")), path.name


def test_no_script_asks_elsewhere(site: Path) -> None:
    scripts = list(site.rglob("*.js"))
    assert len(scripts) > 2
    for path in scripts:
        if path.name == "search_index.js":
            continue  # text of the pages
        for found in re.findall(r"[\"'`](https?://[^\"'`$\s]+)", path.read_text(encoding="utf-8")):
            known = any(found.startswith(one) for one in NEVER_ASKED) or "www.w3.org" in found
            assert known, f"{path.name} names {found}: is it asked?"
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "repo_url" not in config, "the theme would ask its host for the number of stars"
    assert "font: false" in config


def test_the_scan_finds_what_it_looks_for() -> None:
    page = Loads()
    page.feed(
        '<link rel="stylesheet" href="https://a.org/x.css"><script src="//b.org/x.js"></script><img src="x.png">'
        '<link rel="canonical" href="https://c.org/"><p style="background: url(https://d.org/x)">'
        "<style>@import 'https://e.org/x.css';</style><a href='https://f.org'>a link</a>"
    )
    outside = [one for one in page.loaded if ADDRESS.match(one)]
    assert outside == ["https://a.org/x.css", "//b.org/x.js"]
    assert addresses_in_styles(page.styles) == ["https://d.org/x", "https://e.org/x.css"]


def test_the_search_needs_no_server(site: Path) -> None:
    """Its index, its worker and what stands for the worker where a page is opened as a file are in the site."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {one["location"] for one in index["docs"]}
    assert {"index.html", "faq.html", "configuration.html#federationrounds"} <= found
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    assert list(site.glob("assets/javascripts/workers/search.*.js"))
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="assets/iframe-worker.js"' in start
    assert (site / "assets" / "iframe-worker.js").is_file()


def test_formulas_are_set(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 60
    assert text.count('display="block"') >= 10
    assert "arithmatex" not in text
    assert "\\frac" not in text


def test_an_unknown_command_in_a_formula_ends_the_build() -> None:
    import runpy

    from mkdocs.exceptions import PluginError

    mathml = runpy.run_path(str(ROOT / "launch" / "site" / "hooks.py"))["mathml"]
    assert mathml(r"\(a_k\)", "here") == (
        '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">'
        "<mrow><msub><mi>a</mi><mi>k</mi></msub></mrow></math>"
    )
    for wrong in (r"\(\nosuchcommand{a}\)", r"\[\frac{a}\]"):
        with pytest.raises(PluginError, match=r"here: the formula"):
            mathml(wrong, "here")


def test_drawings_are_in_the_page(site: Path) -> None:
    text = (site / "concepts.html").read_text(encoding="utf-8")
    assert 'class="drawing" role="img" aria-label="A round: the server sends' in text
    assert "<svg" in text.split('class="drawing"')[1][:400]
    assert "round.svg" not in text
