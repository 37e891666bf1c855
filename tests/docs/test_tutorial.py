"""docs/tutorial.md and examples/tutorial.ipynb do, in an empty folder, what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks

BLOCKS = blocks(ROOT / "docs" / "tutorial.md")


def environment(folder: Path) -> dict[str, str]:
    """``fedcmp`` and ``python`` are of this checkout and this environment."""
    for name, words in {"fedcmp": "-m fedcmp", "python": ""}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def in_numbers(line: str) -> str:
    """A line without its numbers, which differ in their last digits between machines, and without its alignment."""
    return " ".join(re.sub(r"\d[\d,.]*", "#", line).split())


def digits_right(printed: str) -> dict[str, int]:
    """File of captions -> percent of the digits that they name."""
    return {name: int(share) for name, share in re.findall(r"^(\w+)\.jsonl: (\d+)% of the digits", printed, re.M)}


@pytest.mark.slow
def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (empty := tmp_path / "empty").mkdir()
    around, printed, ran = environment(tmp_path / "bin"), "", 0
    for block in BLOCKS:
        if block.title:
            (empty / block.title).write_text(block.text)
        elif block.language == "bash":
            words = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(words, cwd=empty, env=around, capture_output=True, text=True, check=False)
            assert done.returncode == 0, block.text + done.stdout + done.stderr
            printed, ran = printed + done.stdout, ran + 1
        else:  # what the page says was printed; captions are a matter of a few bits
            known = {in_numbers(line) for line in printed.splitlines()}
            shown = [line for line in block.text.splitlines() if " picture of " not in line]
            assert [line for line in shown if in_numbers(line) not in known] == []
    assert ran == 8
    right = digits_right(printed)
    assert right["together"] >= 65
    assert right["together"] >= right["north"] + 25
    assert abs(right["exported"] - right["together"]) <= 1, "transformers says what fedcmp says"
    summaries = [json.loads((empty / "runs" / run / "summary.json").read_text()) for run in ("together", "alone")]
    together, alone = (summary["val/loss"]["end"] for summary in summaries)
    assert together < 0.1
    assert together < alone / 5
    assert len(list((empty / "runs" / "together" / "report" / "figures").glob("*.png"))) > 10


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "examples" / "tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    right = {name: int(share) for name, share in re.findall(r"^(\S+)\s+(\d+) % of the digits", text, re.M)}
    assert set(right) == {"fedavg", "fedcmp", "north"}
    assert min(right["fedavg"], right["fedcmp"]) >= right["north"] + 20
    assert (tmp_path / "projector.safetensors").is_file()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) == 3
