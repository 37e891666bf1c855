"""The site builds, and a browser that shows it loads nothing from another server."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError
from pages import ROOT

LOADED = re.compile(
    r"""<(?:script|img|source|iframe|embed)\b[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*rel=["']?(?:stylesheet|icon|preload|preconnect)[^>]*href=["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//|@import\s+["'](?:https?:)?//"""
)


def test_no_page_loads_from_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    files = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]
    assert len(files) > 15
    assert [path.name for path in files if LOADED.search(path.read_text(encoding="utf-8"))] == []
    method = (tmp_path / "method.html").read_text(encoding="utf-8")
    assert method.count("<math ") > 40
    assert "\\frac" not in method
    assert 'class="drawing" role="img"' in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ['<img alt="x" src="https://a.org/x.png">', "<style>a{b:url(//c.org)}</style>"])
def test_what_is_loaded_is_found(page: str) -> None:
    assert LOADED.search(page)
    assert not LOADED.search('<a href="https://a.org">a link</a><img src="assets/x.png">')


def test_an_unknown_command_in_a_formula_ends_the_build() -> None:
    mathml = runpy.run_path(str(ROOT / "launch" / "site" / "hooks.py"))["mathml"]
    assert "<msub><mi>a</mi><mi>k</mi></msub>" in mathml(r"\(a_k\)", "here")
    with pytest.raises(PluginError, match=r"here: the formula"):
        mathml(r"\(\nosuchcommand{a}\)", "here")
