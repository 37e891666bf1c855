"""How long fedcmp takes to start: commands from the shell to their exit, runs to their first step, and the first run.

    python benchmarks/startup.py                       # some minutes
    python benchmarks/startup.py --repeats 3

Commands take turns, so that all meet the same load. Processor time (user and system, of the process and its children)
is shown beside wall time, because the machine may be shared.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phases import REST
from record import RESULTS, Table, middle, profile, save

TORCH = "python -c 'import torch'"
WORDS = {
    "fedcmp --help": ["-m", "fedcmp", "--help"],
    TORCH: ["-c", "import torch"],
    "fedcmp validate": ["-m", "fedcmp", "validate", "configs/demo/scenes.yaml"],
    "fedcmp plan": ["-m", "fedcmp", "plan"],
}
"""What is shown, and what Python is given."""
FABRIC = ("lightning.fabric.cli", "--accelerator=cpu", "--devices=2")
STEP = str(Path(__file__).with_name("first_step.py"))
STEPS = {
    "fedcmp train, first step": [STEP, "train"],
    "the next run of a comparison, first step": [STEP, "cell"],
    "fabric run --devices=2, first step": ["-m", *FABRIC, STEP, "train"],
}
"""Runs that end with their first training step."""
WHOLE = "launch/quickstart, installed"
"""README's first command after installation, to its end: `fedcmp train`, with as many threads as there are cores."""
SECONDS = {"fedcmp --help": 0.5, **dict(zip(STEPS, (8.0, 1.0, 12.0), strict=True)), WHOLE: 35.0}
"""Goals; those of runs are half of what they were. Other commands: TIMES that of importing torch."""
TIMES = 1.5


def run(words: list[str], environment: Mapping[str, str] = os.environ) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, t0 = os.times(), time.perf_counter()
    # a config error exits with 2
    subprocess.run([sys.executable, *words], check=False, capture_output=True, env=dict(environment))
    wall, after = time.perf_counter() - t0, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def first_step(words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds until the first training step has ended, the ranks' mean of them."""
    with tempfile.TemporaryDirectory() as folder:
        own = [] if words[-1] == "cell" else [f"run.dir={folder}/run"]
        done = subprocess.run([sys.executable, *words, *own], check=False, capture_output=True, text=True)
    found = re.findall(r"first step ([\d.]+) ([\d.]+)", done.stdout)
    assert found, done.stderr
    return statistics.fmean(float(wall) for wall, _ in found), statistics.fmean(float(used) for _, used in found)


def taken_apart(words: list[str]) -> dict[str, float]:
    """Seconds of a process: of imports by package (the sum over its own modules, ``-X importtime``), of what the tower
    sees where first_step.py says so, and of the rest."""
    t0 = time.perf_counter()
    done = subprocess.run([sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True)
    wall, packages = time.perf_counter() - t0, defaultdict[str, float](float)
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)$", done.stderr, re.MULTILINE):
        packages[name.partition(".")[0]] += int(own) / 1e6
    seconds = {f"import {name}": own for name, own in packages.items() if own >= wall / 10}
    seconds["other imports"] = sum(packages.values()) - sum(seconds.values())
    seconds["pictures through the tower"] = sum(map(float, re.findall(r"tower ([\d.]+)", done.stdout)))
    return {**seconds, REST: wall - sum(seconds.values())}


def tables_of(found: dict[str, Any]) -> dict[str, Table]:
    """Commands and runs with their goals, and where the time goes."""

    def row(name: str) -> list[object]:
        one = found["seconds"].get(name)
        goal, times = SECONDS.get(name), TIMES if name in WORDS and name != TORCH else None
        limit = goal or (times and times * statistics.median(found["seconds"][TORCH]["wall"]))
        verdict = None
        if one and limit:
            verdict = "met" if statistics.median(one["wall"]) <= limit else "missed"
        return [name, *(middle(one[clock]) if one else None for clock in ("wall", "processor")),
                limit and f"{limit:.2f}", verdict]  # fmt: skip

    header = ("", "seconds", "of a processor", "goal", "verdict")
    return {
        "starts": Table(header, [row(name) for name in (*WORDS, *STEPS, WHOLE)]),
        "parts": profile(found["parts"], share=0.1),
    }


def main() -> None:
    """Prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(options.repeats + 1):
        for name, words in WORDS.items():
            one = run(words)
            if number:  # the first brings files into memory
                times[name].append(one)
    for _ in range(options.repeats):
        for name, words in STEPS.items():
            times[name].append(first_step(words))
    with tempfile.TemporaryDirectory() as folder:
        plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        for number in range(min(2, options.repeats)):
            times[WHOLE].append(run(["-m", "fedcmp", "train", f"run.dir={folder}/{number}"], plain))
        parts = {"fedcmp plan": taken_apart(WORDS["fedcmp plan"]),
                 "fedcmp train, first step": taken_apart([STEP, "parts", f"run.dir={folder}/parts"])}  # fmt: skip
    found = {
        "seconds": {name: {"wall": [a for a, _ in each], "processor": [b for _, b in each]}
                    for name, each in times.items()},
        "parts": parts, "times": TIMES,
    }  # fmt: skip
    save("startup", "python benchmarks/startup.py", found, tables_of(found), folder=options.out)


if __name__ == "__main__":
    main()
