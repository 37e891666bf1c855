"""How long fedcmp takes to start: commands from the shell to their exit, runs to their first step, and imports.

    python benchmarks/startup.py                       # some minutes
    python benchmarks/startup.py --repeats 3

Commands take turns, so that all meet the same load. Processor time (user and system, of the process and its children)
is shown beside wall time, because the machine may be shared, and as a multiple of that of importing torch.
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
from pathlib import Path

from record import Table, save, shown, spread

WORDS = {
    "python -c pass": ["-c", "pass"],
    "fedcmp --help": ["-m", "fedcmp", "--help"],
    "fedcmp train --help": ["-m", "fedcmp", "train", "--help"],
    "fedcmp --version": ["-m", "fedcmp", "--version"],
    "fedcmp configs": ["-m", "fedcmp", "configs"],
    "fedcmp methods": ["-m", "fedcmp", "methods"],
    "python -c 'import torch'": ["-c", "import torch"],
    "fedcmp train federation.rounds=0": ["-m", "fedcmp", "train", "federation.rounds=0"],
    "fedcmp validate": ["-m", "fedcmp", "validate", "configs/demo/scenes.yaml"],
    "fedcmp plan": ["-m", "fedcmp", "plan"],
}
"""What is shown, and what Python is given."""
STEP = str(Path(__file__).with_name("first_step.py"))
STEPS = {
    "fedcmp train": [STEP, "train"],
    "the next run of a comparison": [STEP, "cell"],
    "fabric run --devices=2": ["-m", "lightning.fabric.cli", "--accelerator=cpu", "--devices=2", STEP, "train"],
}
"""Runs that end with their first training step."""
PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "torchmetrics",
    "wandb",
    "matplotlib",
    "sklearn",
    "scipy",
    "omegaconf",
)
GOAL = 0.5
"""Seconds in which ``fedcmp --help`` must be there."""


def run(words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, t0 = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], check=False, capture_output=True)  # a config error exits with 2
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


def imported(words: list[str]) -> dict[str, float]:
    """Seconds that importing takes, by package: the sum over its own modules (``-X importtime``)."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True)
    seconds: dict[str, float] = defaultdict(float)
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)$", done.stderr, re.MULTILINE):
        seconds[name.partition(".")[0]] += int(own) / 1e6
    return dict(seconds)


def main() -> None:
    """Prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(options.repeats + 1):
        for name, words in WORDS.items():
            one = run(words)
            if number:  # the first brings files into memory
                times[name].append(one)
    steps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(options.repeats):
        for name, words in STEPS.items():
            steps[name].append(first_step(words))
    torch = min(used for _, used in times["python -c 'import torch'"])
    rows = [
        [f"`{name}`", shown([wall for wall, _ in found]), shown([used for _, used in found]),
         f"{min(used for _, used in found) / torch:.1f}"]
        for name, found in times.items()
    ]  # fmt: skip
    step_rows = [
        [f"`{name}`" if name in ("fedcmp train", "fabric run --devices=2") else name,
         shown([wall for wall, _ in found]), shown([used for _, used in found])]
        for name, found in steps.items()
    ]  # fmt: skip
    helped, planned = imported(WORDS["fedcmp --help"]), imported(WORDS["fedcmp plan"])
    names = sorted({*PACKAGES, "fedcmp"}, key=lambda name: -planned.get(name, 0.0))
    by_package = [[name, helped.get(name), planned.get(name)] for name in names if planned.get(name, 0) > 0.005]
    save(
        "startup",
        "python benchmarks/startup.py",
        {
            "seconds": {name: {"wall": [a for a, _ in found], "processor": [b for _, b in found]}
                        for name, found in {**times, **steps}.items()},
            "imports": {"fedcmp --help": helped, "fedcmp plan": planned},
            "help": spread([wall for wall, _ in times["fedcmp --help"]])[0],
            "goal": GOAL,
        },
        {
            "start": Table(("command", "seconds", "of a processor", "times torch"), rows),
            "first_step": Table(("run", "seconds to the first step", "of a processor, each rank"), step_rows),
            "imports": Table(("package", "fedcmp --help", "fedcmp plan"), by_package),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
