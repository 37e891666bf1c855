"""Help is instant, and a config error or a check of configs costs little more than importing torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedcmp.locking import locked

SLOWER = {"lightning", "torchmetrics", "matplotlib", "wandb", "transformers", "pandas", "scipy", "sklearn", "sympy"}
SLOWEST = SLOWER | {"torch", "numpy", "omegaconf", "PIL"}
ASK = """
import sys
from fedcmp.cli import main
for words in {commands}:
    try:
        main(words)
    except SystemExit as end:
        assert end.code in (0, None), end.code
print("\\n", *sys.modules)
"""
QUICK = [["methods", "fedavg"], ["validate", "demo/scenes"], ["train", "federation.roundz=3"]]
PLANS = [["plan", f"federation.rounds={number}"] for number in (0, 3)]


@pytest.mark.parametrize(("commands", "absent"), [
    ([["--help"], ["--version"], ["configs"]], SLOWEST), ([*QUICK, *PLANS], SLOWER),
])  # fmt: skip
def test_what_commands_do_not_import(commands: list[list[str]], absent: set[str]) -> None:
    """A plan asks transformers for shapes once; what it has found is remembered."""
    subprocess.run([sys.executable, "-m", "fedcmp", *PLANS[1]], capture_output=True, check=True)
    assert absent & imported(commands) == set()


def test_what_a_refused_comparison_and_a_second_writer_do_not_import(tmp_path: Path) -> None:
    assert SLOWER & imported([["compare"]], RANK="0", LOCAL_RANK="0", WORLD_SIZE="2") == set()
    with locked(tmp_path):
        assert (
            SLOWEST & imported([[*one, str(tmp_path)] for one in (["compare", "--out"], ["train", "--resume"])])
            == set()
        )


def imported(commands: list[list[str]], **variables: str) -> set[str]:
    """The packages that commands import."""
    command = [sys.executable, "-c", ASK.format(commands=commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    found = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "fedcmp" in found
    return found
