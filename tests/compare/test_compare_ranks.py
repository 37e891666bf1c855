"""Comparisons whose runs have several ranks each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch.processes import until
from small import SMALL

from fedcmp.cli import main
from fedcmp.compare.workers import num_cores

ROUNDS = 30
WORDS = [*SMALL, f"federation.rounds={ROUNDS}", "federation.local_steps=1", "federation.batch_size=2"]
WORDS += ["federation.passes=20", "--no-bounds", "--budget", "1", "--seeds", "1", "--workers", "1"]
ONE = ["--methods", "fedcmp"]


def compare(*words: str | Path) -> int:
    return main(["compare", *map(str, words)])


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    found = map(json.loads, (folder / "runs.jsonl").read_text().splitlines())
    return {line["cell"]["method"]: line for line in found}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The projector of one process."""
    folder = tmp_path_factory.mktemp("alone") / "study"
    assert compare(*WORDS, *ONE, "--out", folder) == 0
    return str(lines(folder)["fedcmp"]["projector_sha256"])


@pytest.mark.slow
def test_ranks_give_the_bits_of_one_process_and_an_error_of_theirs_is_a_result(tmp_path: Path, alone: str) -> None:
    bad = "bad=fedavg:attack.kind=malformed:attack.share=0.8:federation.min_clients=4"
    assert compare(*WORDS, "launch.devices=2", "--methods", f"fedcmp,{bad}", "--out", tmp_path / "two") == 1
    good, failed = (lines(tmp_path / "two")[method] for method in ("fedcmp", "bad"))
    assert good["device"].startswith("2 x cpu")
    assert good["projector_sha256"] == alone
    assert "AggregationError: " in failed["error"], failed["error"]
    log = tmp_path / "two" / f"{failed['folder']}.log"
    assert str(log) in failed["error"]
    assert "fedcmp: error: " in log.read_text()


@pytest.mark.slow
def test_ranks_end_with_the_comparison_stop_with_it_and_go_on(tmp_path: Path, alone: str) -> None:
    folder = tmp_path / "study"

    def ended(number: int) -> tuple[int, int]:
        """Exit code and rounds done of a comparison that gets a signal in its second round."""
        seen = rounds(folder)
        command = [sys.executable, "-m", "fedcmp", "compare", *WORDS, *ONE, "launch.devices=2", "--out", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: rounds(folder) > seen + 1, 120)
            process.send_signal(number)
            code = process.wait(120)
        finally:
            process.kill()
        until(lambda: not naming(folder), 120)
        return code, rounds(folder)

    code, killed = ended(signal.SIGKILL)
    assert (code, killed < ROUNDS) == (-signal.SIGKILL, True)
    code, stopped = ended(signal.SIGTERM)
    assert (code, killed < stopped < ROUNDS) == (0, True)
    assert compare("--out", folder) == 0
    assert rounds(folder) == ROUNDS
    assert lines(folder)["fedcmp"]["projector_sha256"] == alone


def rounds(folder: Path) -> int:
    return max((text.count("\n") - 1 for text in map(Path.read_text, folder.glob("cells/*/metrics.jsonl"))), default=0)


def naming(folder: Path) -> list[str]:
    """Processes with a file of the folder on their command line: ranks and their launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        found += [path.parent.name] * (os.fsencode(folder / "cells") in words)
    return found


def test_groups_must_fill_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*WORDS, "launch.devices=3", "launch.group_size=2", "--out", tmp_path / "study") == 2
    assert "launch.group_size=2 must divide launch.devices=3" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_the_cores_are_those_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert num_cores() == 16
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert num_cores() == 4
