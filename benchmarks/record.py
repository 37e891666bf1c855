"""What a benchmark leaves behind: one JSON file of what it found, and where, when and with which code.

    benchmarks/results/NAME.json    {"name", "command", "commit", "date", "machine", "versions", ..., "found", "tables"}
    benchmarks/results/NAME.md.j2   the words around its tables (``write_results.py`` joins both to RESULTS.md)

``found`` holds raw numbers, ``tables`` what is printed and shown: a name, a header, rows.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phases import REST

from fedcmp.report.formatting import table
from fedcmp.report.summary import versions

RESULTS = Path(__file__).parent / "results"
PAGES = ("results", "RESULTS.md", "STUDY.md", "DATA.md", "write_results.py")
CODE = ("fedcmp", "benchmarks", *(f":!benchmarks/{name}" for name in PAGES))
"""Files on which a figure may depend."""


class Table(NamedTuple):
    """A table as it is printed and shown; numbers that are not text get three decimals."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def save(
    name: str,
    command: str,
    found: Any,
    tables: Mapping[str, Table],
    extra_versions: Mapping[str, str] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Prints the tables and writes ``folder/NAME.json``.

    Args:
        name: of the benchmark, that of its script.
        command: the words that repeat it.
        found: raw numbers, whatever JSON can hold.
        tables: by name.
        extra_versions: of packages that are not fedcmp's own; they are shown beside torch's.
        folder: where to.
    """
    for title, one in tables.items():
        print(f"\n{title}\n\n{table(one.rows, one.header)}")
    record = {
        "name": name,
        "command": command,
        "commit": COMMIT,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {**versions(), **(extra_versions or {})},
        "shown_versions": list(extra_versions or {}),
        "found": found,
        "tables": {title: {"header": list(one.header), "rows": [list(row) for row in one.rows]}
                   for title, one in tables.items()},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nwrote {path}; `python benchmarks/write_results.py` puts it into RESULTS.md")
    return path


def read(name: str, folder: Path = RESULTS) -> Any:
    """A record that was written before."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that was: ``load`` is the number of processes that wanted to run, on average over
    the last five minutes, this one among them."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[1], 1),
    }


def commit() -> str | None:
    """The commit of the code, with ``-dirty`` where the code differs from it; None outside a repository."""
    here = Path(__file__).parent.parent
    try:
        said = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout
            for words in (["rev-parse", "--short=7", "HEAD"], ["status", "--porcelain", "--", *CODE])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0].strip() + ("-dirty" if said[1].strip() else "")


COMMIT = commit()
"""When this process began: what is edited while it measures does not change what it measures."""


def middle(values: Sequence[float], digits: int = 2) -> str:
    """The median as a table has it.

    >>> middle([1.0, 2.0, 4.0])
    '2.00'
    """
    return f"{statistics.median(values):,.{digits}f}"


def profile(columns: Mapping[str, Mapping[str, float]], digits: int = 2, share: float = 0.05) -> Table:
    """Where time or memory goes: parts that are such a share of a column, the others added up, and all together.

    >>> profile({"s": {"passes": 9.0, "gate": 0.1, "the rest": 0.2}, "s by hand": {"passes": 4.0}}, 1).rows
    [['passes', '9.0', '4.0'], ['the rest', '0.3', '0.0'], ['together', '9.3', '4.0']]
    """
    wholes = {name: sum(parts.values()) for name, parts in columns.items()}
    parts = [part for part in dict.fromkeys(part for one in columns.values() for part in one) if part != REST]
    large = [part for part in parts if any(one.get(part, 0.0) >= share * wholes[name] for name, one in columns.items())]
    rests = {name: whole - sum(columns[name].get(part, 0.0) for part in large) for name, whole in wholes.items()}
    rows = {**{part: [one.get(part, 0.0) for one in columns.values()] for part in large},
            REST: list(rests.values()), "together": list(wholes.values())}  # fmt: skip
    return Table(
        ("", *columns), [[part, *(f"{max(0.0, one):,.{digits}f}" for one in row)] for part, row in rows.items()]
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
