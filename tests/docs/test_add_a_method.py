"""docs/add_a_method.md does what it says: its code, put into a copy of the package, is a method in under 60 lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sandbox
from written import ROOT, Block, Command, blocks, commands

PAGE = ROOT / "docs" / "add_a_method.md"
BLOCKS = list(blocks(PAGE))
NEW = [block for block in BLOCKS if block.language == "python"]
ROWS = [block for block in BLOCKS if block.language == "diff"]
MOST = 60
COPIED = ("fedcmp", "tests", "configs")


def added(block: Block) -> list[str]:
    """The lines that a diff adds."""
    return [line[1:] for line in block.lines if line.startswith("+")]


def test_a_rule_is_less_than_sixty_lines() -> None:
    (method,) = [block for block in NEW if block.title.startswith("fedcmp/")]
    assert len(method.lines) + sum(len(added(block)) for block in ROWS) < MOST
    assert max(map(len, method.lines)) <= 120
    assert "arXiv" in method.text


def apply(block: Block, folder: Path) -> None:
    """Puts the added lines behind the line of the file that stands above them."""
    path = folder / block.title
    lines = path.read_text(encoding="utf-8").splitlines()
    above = [line[1:] for line in block.lines if line.startswith(" ")]
    assert len(above) == 1, f"{block.where}: one line, and what follows it"
    assert lines.count(above[0]) == 1, f"{block.where}: {block.title} has no such line: {above[0]!r}"
    place = lines.index(above[0]) + 1
    path.write_text("\n".join([*lines[:place], *added(block), *lines[place:]]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with the page's method in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for block in NEW:
        assert not (folder / block.title).exists(), f"{block.title} is there already"
        (folder / block.title).write_text(block.text, encoding="utf-8")
    for block in ROWS:
        apply(block, folder)
    return folder


def run(command: Command, folder: Path, more: Sequence[str] = ()) -> str:
    """What a command of the page prints, run in the copy."""
    words, given = command.words, {}
    while "=" in words[0]:
        key, _, value = words.pop(0).partition("=")
        given[key] = value
    program = {"fedcmp": ["-m", "fedcmp"], "python": []}[words[0]]
    environment = {**os.environ, **given, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *program, *words[1:], *more],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_commands_do_what_they_say(copy: Path) -> None:
    laws, demo = [one for block in BLOCKS if block.language == "bash" for one in commands(block)]
    said = run(laws, copy, ["-p", "no:cacheprovider"])
    passed = int(said.rpartition(" passed")[0].split()[-1])
    assert passed >= 15, said
    (golden,) = (copy / "tests" / "golden").glob("gma.json")
    assert len(json.loads(golden.read_text())) == 3
    run(demo, copy, [*sandbox.QUICK, "run.dir=run"])
    summary = json.loads((copy / "run" / "summary.json").read_text())
    assert (summary["method"], summary["exit"]) == ("gma", "finished")


def test_what_the_page_leaves_to_the_reader_is_named(copy: Path) -> None:
    """The rows of docs/ are not on the page; the tests that ask for them are there."""
    text = PAGE.read_text(encoding="utf-8")
    for page in ("docs/methods.md", "docs/compare.md", "docs/configuration.md"):
        assert page in text
