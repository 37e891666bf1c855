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
import fedcmp
if {words}:
    from fedcmp.cli import main
    try:
        main({words})
    except SystemExit as end:
        assert end.code in (0, None), end.code
print("\\n", *sys.modules)
"""


@pytest.mark.parametrize(("words", "absent"), [
    ([], SLOWEST), (["--help"], SLOWEST), (["--version"], SLOWEST), (["configs"], SLOWEST),
    (["methods", "fedavg"], SLOWER), (["validate", "demo/scenes"], SLOWER), (["train", "federation.roundz=3"], SLOWER),
    (["plan", "federation.rounds=0"], SLOWER), (["plan", "federation.rounds=3"], SLOWER),
], ids=lambda one: " ".join(one) if isinstance(one, list) else "")  # fmt: skip
def test_what_a_command_does_not_import(words: list[str], absent: set[str]) -> None:
    """A plan asks transformers for shapes once; what it has found is remembered."""
    if "federation.rounds=3" in words:
        subprocess.run([sys.executable, "-m", "fedcmp", *words], capture_output=True, check=True)
    assert absent & imported(words) == set()


def test_what_a_refused_comparison_and_a_second_writer_do_not_import(tmp_path: Path) -> None:
    assert SLOWER & imported(["compare"], RANK="0", LOCAL_RANK="0", WORLD_SIZE="2") == set()
    with locked(tmp_path):
        for words in (["compare", "--out"], ["train", "--resume"]):
            assert SLOWEST & imported([*words, str(tmp_path)]) == set()


def imported(words: list[str], **variables: str) -> set[str]:
    """The packages that a command imports."""
    command = [sys.executable, "-c", ASK.format(words=words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    found = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "fedcmp" in found
    return found
