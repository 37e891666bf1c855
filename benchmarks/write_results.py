"""Writes RESULTS.md from the benchmarks' JSON files and the words beside them; measures nothing.

    python benchmarks/write_results.py

A section is ``results/NAME.md.j2``; in it ``about`` is the line that says command, commit, date and machine,
``table("NAME")`` one of the record's tables (``tables``: all, ``markdown(ONE)`` shows one), ``found`` its raw numbers,
``record("NAME")`` another record, ``recorded("NAME")`` whether there is one, ``median(VALUES)`` as tables show it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jinja2
from record import RESULTS, read, spread

from fedcmp.report.table import markdown

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

Each section names its command, the commit of the code that was measured, and the machine. Machines are shared and
noisy: trust ratios within a table. A figure with a spread is a median with the quartiles in brackets, of fewer than
four repeats with the extremes.
"""


def page(folder: Path = RESULTS) -> str:
    """The whole page.

    Raises:
        FileNotFoundError: a section lacks its JSON or its words.
        jinja2.UndefinedError: words name a figure that was not found.
    """
    return "\n".join([HEAD, *(section(name, folder) for name in sections(folder))]).rstrip("\n") + "\n"


def sections(folder: Path = RESULTS) -> list[str]:
    """Those of the page, in its order."""
    return [name for name in SECTIONS if name not in IF_RECORDED or recorded(name, folder)]


def recorded(name: str, folder: Path = RESULTS) -> bool:
    """Whether there is such a record."""
    return (folder / f"{name}.json").exists()


def section(name: str, folder: Path = RESULTS) -> str:
    """One section, from its heading on."""
    one = read(name, folder)

    def shown(found: dict[str, Any]) -> str:
        return markdown(found["rows"], found["header"])

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    words = (folder / f"{name}.md.j2").read_text(encoding="utf-8")
    return environment.from_string(words).render(
        about=about(one),
        table=lambda title: shown(one["tables"][title]),
        markdown=shown,
        tables=one["tables"],
        found=one["found"],
        record=lambda other: read(other, folder),
        recorded=lambda other: recorded(other, folder),
        median=lambda values: spread(values)[0],
    )


def about(one: dict[str, Any]) -> str:
    """Command, commit, date, machine and versions in a line.

    >>> about({"command": "python x.py", "commit": "0123456", "date": "2026-01-31", "versions": {"torch": "2.13.0"},
    ...        "machine": {"processor": "CPU", "cores": 2, "threads": 1, "gpu": None, "load": 2.5}})
    '`python x.py`; commit 0123456, 2026-01-31; CPU, 2 cores, 1 thread, load 2.5; torch 2.13.0.'
    """
    where = one["machine"]
    parts = [where.get("processor"), _count(where.get("cores"), "core"), _count(where.get("threads"), "thread")]
    parts += [where.get("gpu"), f"load {where['load']}" if "load" in where else None]
    when = f"commit {one['commit']}" + (f", {one['date']}" if one.get("date") else "")
    named = ", ".join(f"{name} {one['versions'][name]}" for name in ("torch", *one.get("shown_versions", ()))
                      if name in one["versions"])  # fmt: skip
    place = ", ".join(part for part in parts if part)
    return "; ".join(part for part in (f"`{one['command']}`", when, place, named) if part) + "."


def _count(number: int | None, what: str) -> str | None:
    return None if number is None else f"{number} {what}{'' if number == 1 else 's'}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE} from {len(sections())} benchmarks")


if __name__ == "__main__":
    main()
