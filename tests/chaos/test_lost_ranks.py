"""A rank that dies under a real launcher: the run ends, names it, and no process is left."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "launch"))

import processes
from processes import SMALL, fabric_run, free_port, started, summary, until


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("launcher", ["fabric run", "launch.devices"])
def test_a_rank_that_is_killed_ends_the_run_and_is_named(tmp_path: Path, launcher: str) -> None:
    run = tmp_path / "run"
    words = [*SMALL, "federation.rounds=200", "federation.local_steps=1", "federation.passes=200", f"run.dir={run}"]
    command = fabric_run(2, words, port=free_port())
    if launcher == "launch.devices":
        command = [sys.executable, "-m", "fedcmp", "train", *words, "launch.devices=2"]
    with started(command, tmp_path) as process:
        until(lambda: (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 1)
        (rank,) = [pid for pid in processes.children(process.pid) if processes.variable(pid, "RANK") == "1"]
        os.kill(rank, signal.SIGKILL)
        assert process.wait(processes.PATIENCE * 60) != 0
        assert not processes.naming(tmp_path), "a rank outlived its launcher"
    assert summary(run)["error"].startswith("RankLost: rank 1 was lost: ")
    assert "rank 0: fedcmp: error: rank 1 was lost: it died" in (tmp_path / "log").read_text()
