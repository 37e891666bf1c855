"""Runs of several ranks, started as users start them: the bits of one rank alone, and an end in any case."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import processes
import pytest
from processes import PATIENCE, ROUNDS, SMALL, fabric_run, finished, free_port, started, summary, until

from fedcmp.runs.train import resume

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

BROKEN = """\
import os, sys
import fedcmp.federation.groups as groups
from fedcmp.cli import main

def broken(*arguments, **options):
    raise OSError("the disk is gone")

if os.environ["RANK"] == "1":
    groups.train_wave = broken
sys.exit(main())
"""


def test_a_stopped_run_goes_on_under_another_number_of_ranks(tmp_path: Path, alone: str) -> None:
    run = tmp_path / "run"
    with started(fabric_run(2, [*SMALL, f"run.dir={run}"], port=free_port()), tmp_path) as launcher:
        until((run / "config.yaml").exists)
        for rank in processes.children(launcher.pid):
            os.kill(rank, signal.SIGUSR1)
        assert launcher.wait(PATIENCE * 60) == 0
    assert summary(run)["exit"] == "stopped"
    assert 0 < summary(run)["rounds"] < ROUNDS
    assert "it goes on with: fedcmp train --resume" in (tmp_path / "log").read_text()
    command = [sys.executable, "-m", "fedcmp", "train", "--resume", str(run), "launch.devices=3"]
    code, said = finished(command, tmp_path)
    assert code == 0, said
    assert summary(run)["exit"] == "finished"
    assert summary(run)["device"].startswith("3 x cpu")
    assert summary(run)["projector_sha256"] == alone


def test_two_nodes_give_the_bits_of_one_rank(tmp_path: Path, alone: str) -> None:
    words, port = [*SMALL, f"run.dir={tmp_path / 'run'}"], free_port()
    with (
        started(fabric_run(1, words, port=port, node=0), tmp_path) as first,
        started(fabric_run(1, words, port=port, node=1), tmp_path) as second,
    ):
        assert (first.wait(PATIENCE * 90), second.wait(PATIENCE * 90)) == (0, 0), (tmp_path / "log").read_text()
    assert summary(tmp_path / "run")["projector_sha256"] == alone


def test_a_failure_of_one_rank_ends_all_and_is_told_once(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    run = tmp_path / "run"
    with started(fabric_run(2, [*SMALL, f"run.dir={run}"], script=str(script), port=free_port()), tmp_path) as launcher:
        assert launcher.wait(PATIENCE * 60) == 1
        assert not processes.naming(tmp_path), "a rank outlived its launcher"
    said = (tmp_path / "log").read_text()
    told = [line for line in said.splitlines() if "the disk is gone" in line]
    assert len(told) == 1, said
    assert re.match(
        r"rank 1: fedcmp: error: one of client 2 .*, client 3 .*, trained together, failed in train", told[0]
    )
    assert summary(run)["exit"] == "failed"
    assert "(on rank 1)" in summary(run)["error"]


def launched(kind: str, words: list[str]) -> list[str]:
    """The command line of a run, of two ranks unless it is of ``one``."""
    if kind == "fabric":
        return fabric_run(2, words, port=free_port())
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] * (kind == "torchrun")
    devices = ["launch.devices=2"] * (kind == "devices")
    return [sys.executable, *torchrun, "-m", "fedcmp", "train", *words, *devices]


@pytest.mark.parametrize("kind", ["devices", "fabric", "torchrun"])
def test_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path, alone: str, kind: str) -> None:
    run = tmp_path / "run"
    with started(launched(kind, [*SMALL, f"run.dir={run}"]), tmp_path) as launcher:
        until((run / "metrics.jsonl").exists)
        launcher.kill()
        launcher.wait()
        until(lambda: not processes.naming(run), 20)
    said = (tmp_path / "log").read_text()
    assert [line.partition(":")[0] for line in said.splitlines() if "error" in line] == ["rank 0"], said
    assert "frame #" not in said
    assert "Traceback" not in said
    assert resume(run)["projector_sha256"] == alone


@pytest.mark.parametrize(("kind", "code"), [("one", 130), ("devices", 130), ("fabric", -signal.SIGKILL)])
def test_ctrl_c_says_how_the_run_goes_on(tmp_path: Path, kind: str, code: int) -> None:
    """`fabric run` would show its own traceback: rank 0 ends it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it, and so would ranks
    run = tmp_path / "run"
    words = [*SMALL, "federation.passes=100", "federation.rounds=100", f"run.dir={run}"]
    with started(launched(kind, words), tmp_path) as launcher:
        until(lambda: list(run.glob("checkpoints/*.pt")))
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(PATIENCE * 60) == code
        until(lambda: not processes.naming(run), 20)
    said = (tmp_path / "log").read_text()
    assert said.count(f"fedcmp train --resume {run}") == 1, said
    assert "Traceback" not in said
    assert "error" not in said
    assert summary(run)["exit"] == "failed"


@pytest.mark.parametrize("kind", ["fabric", "devices"])
def test_a_rank_that_is_killed_ends_the_run_and_is_named(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    words = [*SMALL, "federation.rounds=200", "federation.local_steps=1", "federation.passes=200", f"run.dir={run}"]
    with started(launched(kind, words), tmp_path) as launcher:
        until(lambda: (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 1)
        (rank,) = [pid for pid in processes.children(launcher.pid) if processes.variable(pid, "RANK") == "1"]
        os.kill(rank, signal.SIGKILL)
        assert launcher.wait(PATIENCE * 60) != 0
        assert not processes.naming(tmp_path), "a rank outlived its launcher"
    assert summary(run)["error"].startswith("RankLost: rank 1 was lost: ")
    assert "rank 0: fedcmp: error: rank 1 was lost: it died" in (tmp_path / "log").read_text()
