"""What the pages say: their code blocks, the commands in them, and the words that they set as code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "STUDY.md",
    ROOT / "benchmarks" / "RESULTS.md",
]
"""All that a reader of the site or of the repository's first page sees."""
SHELL = "bash"
LANGUAGES = {SHELL, "diff", "json", "python", "text", "yaml"}
INDENTED = {"README.md", "STUDY.md", "RESULTS.md"}
"""Pages whose blocks may be indented; on the others a fence says what is in it."""
FENCE = re.compile(r"^(`{3,})(\w*)(?: title=\"([^\"]*)\")?\s*$")


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    line: int
    """Of its first line of code, from 1."""
    language: str | None
    """What the fence says; None: indented."""
    title: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """One command line of a page, without its comment."""

    where: str
    text: str

    @property
    def page(self) -> str:
        return self.where.rpartition(":")[0]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page, in their order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence:
            end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == fence[1])
            yield Block(page, number + 2, fence[2], fence[3] or "", tuple(lines[number + 1 : end]))
            number = end + 1
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            inside = [line[4:] for line in lines[number:end]]
            yield Block(page, number + 1, None, "", tuple("\n".join(inside).rstrip().split("\n")))
            number = end
        else:
            number += 1


def is_shell(block: Block, programs: set[str]) -> bool:
    """Whether a block holds commands: its fence says so, or, where it has none, its first word is a program."""
    if block.language is not None:
        return block.language == SHELL
    return block.lines[0].split()[0] in programs


def commands(block: Block) -> Iterator[Command]:
    """The command lines of a block; lines that end with a backslash go on."""
    begun, start = "", 0
    for number, line in enumerate(block.lines):
        start = start if begun else number
        begun += line
        if line.endswith("\\"):
            begun = begun[:-1].rstrip() + " "
            continue
        text = _without_comment(begun.strip())
        if text:
            yield Command(f"{block.page.relative_to(ROOT)}:{block.line + start}", text)
        begun = ""


def _without_comment(line: str) -> str:
    """A ``#`` at the start or after a space begins a comment, unless it stands in quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].rstrip()
    return line


def spans(page: Path) -> Iterator[tuple[str, str]]:
    """What a page sets as code within its text, each with its place."""
    inside = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"^(`{3,})", line)
        if fence:
            inside = "" if inside else fence[1]
            continue
        if not inside and not line.startswith("    "):
            for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", line):
                yield f"{page.relative_to(ROOT)}:{number}", found[1]
