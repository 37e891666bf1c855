"""What the pages name is there: settings, files, tests, commands, links; and their formulas are read by GitHub, too."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from written import PAGES, ROOT, spans

from fedcmp.aggregation.presets import FUSES, LOCALS, PRESETS, SERVERS
from fedcmp.cli import COMMANDS
from fedcmp.config import Config

FOLDERS = ("fedcmp", "tests", "docs", "configs", "examples", "benchmarks", "launch", ".ci")
NAMED = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]+")
PARTS = {"local": LOCALS, "fuse": FUSES, "server": SERVERS}
SPANS = [(where, text) for page in PAGES for where, text in spans(page)]
SETTING = re.compile(rf"^((?:{'|'.join(one.name for one in dataclasses.fields(Config))})(?:\.\w+)+)(=.*)?$")
NO_SETTING = re.compile(r"^model\.(decoder\.)?layers?$|^model\.safetensors$")
"""Parts of models and a file of theirs, which begin as settings do."""


def is_setting(key: str) -> bool:
    """Whether a config has this key, or this group of keys."""
    value: object = Config()
    parts = key.split(".")
    if parts[0] == "aggregator" and len(parts) == 3 and parts[1] in PARTS:
        known = {one.name for part in PARTS[parts[1]].values() for one in dataclasses.fields(part)}
        return parts[2] in known | {"kind"}
    for part in parts:
        if not dataclasses.is_dataclass(value) or part not in {one.name for one in dataclasses.fields(value)}:
            return False
        value = getattr(value, part)
    return True


def settings() -> Iterator[tuple[str, str]]:
    for where, text in SPANS:
        for word in text.split():
            found = SETTING.match(word.strip("',"))
            if found and not NO_SETTING.match(word):
                yield where, found[1]


def test_every_setting_is_there() -> None:
    found = list(settings())
    assert len(found) > 150
    wrong = [f"{where}: `{key}`" for where, key in found if not is_setting(key)]
    assert not wrong, f"no such settings: {wrong}"


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_file_and_test_is_there() -> None:
    count, wrong = 0, []
    for where, text in SPANS:
        name, _, inside = text.partition("::")
        if not NAMED.fullmatch(name) or re.search(r"/[A-Z]+/", name):  # a word in capitals stands for others
            continue
        count += 1
        found = sorted(ROOT.glob(name))
        if not found:
            wrong.append(f"{where}: `{name}` is not there")
        elif inside and inside not in functions(found[0]):
            wrong.append(f"{where}: {name} has no {inside}")
    assert count > 50
    assert not wrong, "\n".join(wrong)


def test_every_command_that_is_named_is_one() -> None:
    named = {text.split()[1] for _, text in SPANS if re.match(r"fedcmp [a-z]", text)}
    assert len(named) > 8
    assert named <= COMMANDS.keys()


def test_the_first_page_counts_the_methods() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"; {len(PRESETS) - 1} others are" in text


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES[-2:]], ids=lambda one: one.name)
def test_links_in_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    """Those inside are checked by mkdocs, anchors too."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if "$" in page.read_text()], ids=lambda one: one.name)
def test_formulas_are_read_by_github_too(page: Path) -> None:
    r"""It reads Markdown first, which takes the backslash of ``\,``, ``\{`` and ``\\`` away."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    for formula in re.findall(r"\$\$(.*?)\$\$|\$([^$]+)\$", text, re.DOTALL):
        inside = "".join(formula)
        assert not re.search(r"\\[^a-zA-Z]", inside), f"{page.name}: {inside!r}"
