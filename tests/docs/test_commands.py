"""Every command of the pages is parsed with its config; some are run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, commands
from PIL import Image
from small import SMALL

from fedcmp.cli import build_parser, main
from fedcmp.compare import Request, ask
from fedcmp.config import load_config
from fedcmp.export.card import USE

DEMO = "configs/demo/scenes.yaml"
QUICK = [*SMALL, "federation.rounds=1", "federation.local_steps=0", "partition.quantity.min_samples=4"]
WITH_CONFIG = ("train", "plan", "doctor", "centralized", "local", "compare")
OTHERS = {"cp", "done", "export", "for", "grep", "hf", "launch/quickstart", "launch/sites", "python3", "wandb"}
"""Programs whose words are not ours; scripts behind ``python`` must exist."""


def check(words: list[str]) -> None:
    """Parses a command line.

    Raises:
        Exception: it is wrong, or no known program.
    """
    program = words[0].removeprefix(".venv/bin/")
    if "=" in program or program == "exec":  # a variable for one command
        return check(words[1:])
    if "--wrap" in words:
        return check(shlex.split(words[words.index("--wrap") + 1]))
    if program in ("fabric", "torchrun", "srun", "sbatch"):  # ours is what follows
        batch = "launch/slurm.sbatch"
        words = ["fedcmp", "train", *words[words.index(batch) + 1 :]] if batch in words else words
        return check(["fedcmp", *words[words.index("train") :]])
    if program == "python":
        assert words[1] in ("-m", "-c") or Path(words[1]).is_file(), f"no script {words[1]}"
        return None
    if program != "fedcmp":
        assert program in OTHERS, f"unknown program {program}"
        return None
    if words[1] == "--version":
        return None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = build_parser().parse_args(words[1:])
    except SystemExit:
        raise ValueError(said.getvalue().strip().splitlines()[-1]) from None
    if parsed.command not in WITH_CONFIG:
        return None
    given = [re.sub(r"^CONFIG$", DEMO, word) for word in parsed.words]
    file = Path(given.pop(0)) if given and "=" not in given[0] else None
    if parsed.command == "compare":
        lists = {name: ",".join(getattr(parsed, name) or []) or None for name in ("methods", "scenarios")}
        ask(file, given, Request(**lists, budget=parsed.budget))
    else:
        load_config(file, given)
    return None


def test_every_command_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "benchmarks", "examples", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "use.py").write_text(USE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    wrong = []
    found = [(page, words) for page, words in commands() if page != "extend.md"]  # test_extend.py runs its own
    for page, words in found:
        try:
            check(words)
        except Exception as error:
            wrong.append(f"{page}: {' '.join(words)}: {error}")
    assert len(found) > 60
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs, a finished run and pictures, as the pages name them."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "photos").mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "photos" / "1.jpg")
    assert main(["train", *QUICK, f"run.dir={folder / 'runs' / 'mine'}"]) == 0
    return folder


@pytest.mark.parametrize("line", [
    "fedcmp train aggregator=fedadam aggregator.server.lr=0.03",
    "fedcmp train configs/demo/topic.yaml",
    "fedcmp train --resume runs/mine",
    "fedcmp plan configs/demo/scenes.yaml --ranks 4",
    "fedcmp caption runs/mine photos/ --json",
    "fedcmp export runs/mine --to hf --out exported",
])  # fmt: skip
def test_commands_of_the_pages_run(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = line.split()
    assert words in [found for _, found in commands()], "it is not on a page any more"
    monkeypatch.chdir(place)
    small = QUICK if words[1] in ("train", "plan") and "--resume" not in words else []
    assert main([*words[1:], *small]) == 0


def test_ten_lines_of_python_run() -> None:
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    names: dict[str, object] = {}
    exec(compile(first.text, "README.md", "exec"), names)
    assert names["done"].rounds == 2


@pytest.mark.slow
def test_the_quickstart_trains(place: Path) -> None:
    """All but the installation: the environment is this one, under another name."""
    for name in ("launch", "pyproject.toml", "constraints.txt"):
        (place / name).symlink_to(ROOT / name)
    python = place / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    pinned = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    wanted = subprocess.run(["cksum"], input=pinned, capture_output=True, check=True).stdout
    (place / ".venv" / ".fedcmp-installed").write_bytes(wanted)
    done = subprocess.run(
        ["bash", "launch/quickstart", *QUICK, "run.dir=runs/quick"],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "runs" / "quick" / "summary.json").is_file()
