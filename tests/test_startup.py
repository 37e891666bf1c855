"""Help is instant: it imports nothing heavy, and so stays far below half a second."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lightning", "wandb", "matplotlib", "sklearn", "scipy", "numpy", "omegaconf", "PIL")
ASK = """
import sys
from fedcmp.cli import main
try:
    main({words})
except SystemExit as end:
    assert end.code in (0, None), end.code
print("\\n", *sys.modules)
"""


def imported(words: list[str]) -> set[str]:
    """The packages that a process has imported when the command ends."""
    done = subprocess.run([sys.executable, "-c", ASK.format(words=words)], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["compare", "--help"], ["--version"], ["configs"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    found = imported(words)
    assert "fedcmp" in found
    assert not found & set(HEAVY)


def test_it_would_be_seen() -> None:
    assert {"fedcmp", "torch", "numpy"} <= imported(["methods", "fedavg"])
