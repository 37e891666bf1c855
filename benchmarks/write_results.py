"""Writes RESULTS.md from the benchmarks' JSON files and the words beside them; measures nothing.

    python benchmarks/write_results.py

A section is ``results/NAME.md.j2``; in it ``about`` is its command, and what of commit, date, machine and torch is not
as in the page's head,
``table("NAME")`` one of the record's tables (``tables``: all, ``markdown(ONE)`` shows one), ``found`` its raw numbers,
``record("NAME")`` another record, ``recorded("NAME")`` whether there is one, ``median(VALUES)`` as tables show it,
``verdict(VALUE, GOAL)`` whether a goal of at most so much is met.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from record import RESULTS, read

from fedcmp.report.formatting import markdown

PAGE = Path(__file__).parent / "RESULTS.md"
SECTIONS = (
    "limit",
    "peers",
    "canonical_scale",
    "server_memory",
    "aggregation",
    "scale_data",
    "startup",
    "growth",
    "many_clients",
    "sites_round",
    "tried",
    "ensemble",
    "llava_tiny",
    "llava_shape",
    "gpu",
)
"""In the page's order."""
IF_RECORDED = ("llava_shape", "gpu")
"""Sections of what a GPU is needed for: they are there once it was measured."""
HEAD = """\
# Results

<!-- written by benchmarks/write_results.py from benchmarks/results/: change those -->

If a section does not say otherwise: {usual}. `benchmarks/all.sh` renews all sections. The machine
is shared: trust ratios within a table. Figures are medians; `benchmarks/results/` has every repeat.
"""


def page(folder: Path = RESULTS) -> str:
    """The whole page.

    Raises:
        FileNotFoundError: a section lacks its JSON or its words.
        jinja2.UndefinedError: words name a figure that was not found.
    """
    named = sections(folder)
    usual = usually([facts(read(name, folder)) for name in named])
    head = HEAD.format(usual="; ".join(usual))
    text = "\n".join([head, *(section(name, folder, usual) for name in named)]).rstrip("\n") + "\n"
    return re.sub(r"(?m)(?:^[`\w].*\n)+", lambda found: wrapped(found.group()), text)


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of one width, whatever its figures are."""
    return textwrap.fill(paragraph, 130, break_long_words=False, break_on_hyphens=False) + "\n"


def usually(of_sections: list[list[str]]) -> list[str]:
    """What most sections say, in their order.

    >>> usually([["commit a", "CPU"], ["commit b", "CPU"], ["commit b", "CPU", "load 3"]])
    ['commit b', 'CPU']
    """
    counts = Counter(fact for one in of_sections for fact in one)
    most = {fact for fact, count in counts.items() if count > len(of_sections) / 2}
    return [fact for fact in max(of_sections, key=lambda one: len(most & set(one))) if fact in most]


def sections(folder: Path = RESULTS) -> list[str]:
    """Those of the page, in its order."""
    return [name for name in SECTIONS if name not in IF_RECORDED or recorded(name, folder)]


def recorded(name: str, folder: Path = RESULTS) -> bool:
    """Whether there is such a record."""
    return (folder / f"{name}.json").exists()


def section(name: str, folder: Path = RESULTS, usual: Collection[str] = ()) -> str:
    """One section, from its heading on, without the facts that are ``usual``."""
    one = read(name, folder)

    def shown(found: dict[str, Any]) -> str:
        return markdown(found["rows"], found["header"])

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    words = (folder / f"{name}.md.j2").read_text(encoding="utf-8")
    return environment.from_string(words).render(
        about="; ".join([f"`{one['command']}`", *(fact for fact in facts(one) if fact not in usual)]) + ".",
        table=lambda title: shown(one["tables"][title]),
        markdown=shown,
        tables=one["tables"],
        found=one["found"],
        record=lambda other: read(other, folder),
        recorded=lambda other: recorded(other, folder),
        median=median,
        verdict=lambda value, goal: "met" if value <= goal else "missed",
    )


def facts(one: dict[str, Any]) -> list[str]:
    """Commit and date, machine, and versions; how busy the machine was, if more than its cores wanted to run.

    >>> facts({"command": "python x.py", "commit": "0123456", "date": "2026-01-31", "versions": {"torch": "2.13.0"},
    ...        "machine": {"processor": "CPU", "cores": 2, "threads": 1, "gpu": None, "load": 2.5}})
    ['commit 0123456, 2026-01-31', 'CPU, 2 cores, 1 thread', 'load 2.5', 'torch 2.13.0']
    """
    where = one["machine"]
    parts = [where.get("processor"), _count(where.get("cores"), "core"), _count(where.get("threads"), "thread"),
             where.get("gpu")]  # fmt: skip
    found = [f"commit {one['commit']}" + (f", {one['date']}" if one.get("date") else "")]
    found.append(", ".join(part for part in parts if part))
    if where.get("load", 0) > (where.get("cores") or 0):
        found.append(f"load {where['load']}")
    names = ("torch", *one.get("shown_versions", ()))
    return found + [f"{name} {one['versions'][name]}" for name in names if name in one["versions"]]


def _count(number: int | None, what: str) -> str | None:
    return None if number is None else f"{number} {what}{'' if number == 1 else 's'}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE} from {len(sections())} benchmarks")


if __name__ == "__main__":
    main()
