"""Of what kind a command of the pages is: how far it can be run here, and which part of it is fedcmp's."""

from __future__ import annotations

import re
from typing import NamedTuple

from written import Command

FEDCMP = ("fedcmp", ".venv/bin/fedcmp")
LAUNCHERS = ("fabric", "torchrun", "srun", "sbatch")
PYTHONS = ("python", "python3", ".venv/bin/python")
PROGRAMS = {*FEDCMP, *LAUNCHERS, *PYTHONS, "wandb", "export", "launch/quickstart", "launch/check"}
"""What a block of commands may begin with."""
OWN_TEST = {
    "docs/add_a_method.md": "tests/docs/test_add_a_method.py",
    "docs/own_data.md": "tests/data/test_prepare.py",
}
"""Pages whose commands need what the page makes first."""
ELSEWHERE = {
    ".venv/bin/fedcmp --version": ("tests/test_shipped.py", '"--version"'),
    ".venv/bin/python -m pip install --no-index": ("tests/test_wheel.py", '"--no-index"'),
    ".venv/bin/python -m pip install -c": ("launch/environment", "-c constraints.txt"),
    "python examples/own_everything.py": ("tests/test_python_api.py", "own_everything"),
    "python3 -m pip download": ("tests/test_wheel.py", '"download"'),
    "python3 -m pip wheel": ("tests/test_wheel.py", "build_meta"),
    "python3 -m venv": ("launch/environment", "-m venv"),
    "fedcmp serve": ("tests/test_using.py", '"serve"'),
    "wandb sync": ("tests/tracking/test_wandb.py", '"sync"'),
    "python launch/site/settings.py": ("tests/docs/test_settings_page.py", "settings.py"),
}
"""Beginnings of commands that a test runs in its own way: the file, and a word of it that says so."""


class Kind(NamedTuple):
    """How a command is held."""

    name: str
    """`runs`, `pairs`, `ranks`, `script`, `export`, `quickstart`, `own` or `elsewhere`."""
    fedcmp: tuple[str, ...] = ()
    """The words of fedcmp's own command line, from its command on."""
    ranks: int = 1


def kind_of(command: Command) -> Kind:
    """The kind of a command.

    Raises:
        AssertionError: none fits; the message says what to do.
    """
    words = command.words
    if command.page in OWN_TEST:
        return Kind("own")
    if any(command.text.startswith(beginning) for beginning in ELSEWHERE):
        return Kind("elsewhere")
    if words[0] in FEDCMP:
        devices = re.search(r"launch\.devices=(\d+)", command.text)
        if devices and words[1] == "train":
            return Kind("ranks", tuple(words[1:]), int(devices[1]))
        if words[1] == "train" and re.search(r"=/models/|configs/scale/", command.text):
            return Kind("ranks", tuple(words[1:]))  # of such models shapes at most are known here
        pairs = any(re.match(r"configs/(scenarios/|study/pairs)", word) for word in words)
        return Kind("pairs" if pairs else "runs", tuple(words[1:]))
    if words[0] in LAUNCHERS:
        ours = fedcmp_words(words)
        assert ours, f"{command.where}: `{command.text}` starts no fedcmp train"
        counts = re.findall(r"--(?:devices|num-nodes|nproc-per-node|ntasks)=(\d+)", command.text)
        ranks = 1
        for count in counts:
            ranks *= int(count)
        return Kind("ranks", tuple(ours), ranks)
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        return Kind("script")
    if words[0] == "export":
        return Kind("export")
    if words[0] == "launch/quickstart":
        return Kind("quickstart")
    raise AssertionError(
        f"{command.where}: nobody runs `{command.text}`. A command of fedcmp is run as it is; for another program, "
        "write a test that runs it and name both in ELSEWHERE of tests/docs/kinds.py; what is no command stands in no "
        "bash block"
    )


def fedcmp_words(words: list[str]) -> list[str]:
    """What a launcher passes to fedcmp, from ``train`` on; of ``launch/slurm.sbatch``, which adds it, with it."""
    if "launch/slurm.sbatch" in words:
        return ["train", *words[words.index("launch/slurm.sbatch") + 1 :]]
    return words[words.index("train") :] if "train" in words else []
