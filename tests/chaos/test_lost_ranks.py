"""Ranks that die or hang: the run ends within its timeout, and names them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "launch"))

import processes
from processes import SMALL, fabric_run, free_port, started, summary, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

LONG = [*(word for word in SMALL if not word.startswith("federation.rounds")), "federation.rounds=200"]
LONG += ["federation.local_steps=1", "federation.passes=200"]
"""A run that does not end before something is done to it."""


def lost(tmp_path: Path, command: list[str], number: int, seconds: float) -> str:
    """What a run of two ranks says of which rank 1 gets a signal after its first round."""
    run = tmp_path / "run"
    with started(command, tmp_path) as launcher:
        until(lambda: (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 1)
        (rank,) = [pid for pid in processes.children(launcher.pid) if processes.variable(pid, "RANK") == "1"]
        os.kill(rank, number)
        assert launcher.wait(processes.PATIENCE * seconds) != 0
        assert not processes.naming(tmp_path), "a rank outlived its launcher"
    assert summary(run)["exit"] == "failed"
    assert summary(run)["error"].startswith("RankLost: rank 1 was lost: ")
    return (tmp_path / "log").read_text()


@pytest.mark.parametrize("launcher", ["fabric run", "launch.devices"])
def test_a_rank_that_is_killed_ends_the_run_and_is_named(tmp_path: Path, launcher: str) -> None:
    words = [*LONG, f"run.dir={tmp_path / 'run'}"]
    command = fabric_run(2, words, port=free_port())
    if launcher == "launch.devices":
        command = [sys.executable, "-m", "fedcmp", "train", *words, "launch.devices=2"]
    said = lost(tmp_path, command, signal.SIGKILL, 60)
    assert "rank 0: fedcmp: error: rank 1 was lost: it died, or was stopped: it has no pulse" in said


def test_a_rank_that_hangs_ends_the_run_within_the_timeout_and_is_named(tmp_path: Path) -> None:
    words = [*LONG, f"run.dir={tmp_path / 'run'}", "launch.timeout=60"]
    said = lost(tmp_path, fabric_run(2, words, port=free_port()), signal.SIGSTOP, 60 + 45)
    assert "rank 0: fedcmp: error: rank 1 was lost: it died, or was stopped: it has no pulse" in said
    assert "Timed out waiting 60000ms" in said
