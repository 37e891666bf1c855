"""Launchers, SLURM, and ranks that meet or cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedcmp.distributed.probe import Meeting, meet
from fedcmp.doctor.processes import left_overs, process_group, slurm

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
STEP = {**JOB, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(("environment", "status", "said"), [
    ({}, "ok", "no left-overs"),
    ({"MASTER_ADDR": "node1"}, "ok", "no left-overs"),
    ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "warn", "RANK, WORLD_SIZE, LOCAL_RANK set"),
    ({"RANK": "0"}, "warn", "one of several ranks"),
    ({"RANK": "0", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}, "ok", "launched by torchrun"),
    ({"RANK": "0", "WORLD_SIZE": "4", "LT_CLI_USED": "1"}, "ok", "launched by"),
], ids=str)  # fmt: skip
def test_left_overs_of_launchers(environment: dict[str, str], status: str, said: str) -> None:
    finding = left_overs(environment)
    assert finding.status == status
    assert said in finding.what
    assert status == "ok" or finding.mend.startswith("unset RANK")


@pytest.mark.parametrize(("environment", "tools", "status", "said"), [
    ({}, (), "ok", "no SLURM here"),
    ({}, ("srun", "sbatch"), "ok", "srun and sbatch found, outside of an allocation"),
    (JOB, ("srun", "sbatch"), "warn", "job 7 has 8 tasks, but this process is no step"),
    (JOB, (), "warn", "inside job 7, but srun is not found"),
    ({**JOB, "SLURM_NTASKS": "1"}, ("srun",), "ok", "inside job 7 with 1 task"),
    ({**JOB, "TORCHELASTIC_RUN_ID": "x"}, ("srun",), "ok", "inside job 7 with 8 tasks"),
    (STEP, ("srun",), "ok", "rank 3 of a step of 8"),
], ids=str)  # fmt: skip
def test_where_this_is_in_slurm(environment: dict[str, str], tools: tuple[str, ...], status: str, said: str) -> None:
    finding = slurm(environment, lambda tool: f"/bin/{tool}" if tool in tools else None)
    assert finding.status == status
    assert said in finding.what
    assert ("srun fedcmp train" in finding.mend) == ("no step" in finding.what)


@pytest.mark.parametrize(("needed", "status"), [(True, "fatal"), (False, "warn")])
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_ranks_that_cannot_meet(backend: str, needed: bool, status: str) -> None:
    finding = process_group(backend, 2, needed, lambda *args: Meeting(False, 1.0, "RuntimeError: no way"))
    assert finding.status == status
    assert finding.what == f"{backend}: 2 ranks cannot meet: RuntimeError: no way"
    assert ("GLOO_SOCKET_IFNAME" in finding.mend) == (backend == "gloo")


def test_two_ranks_meet_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "9"), ("MASTER_ADDR", "nowhere")):
        monkeypatch.setenv(name, value)  # left-overs must not reach them
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    finding = process_group("gloo", 2, needed=True)
    assert finding.status == "ok"
    assert "gloo: 2 ranks met" in finding.what


def test_a_network_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    result = meet("gloo", 2)
    assert not result.met
    assert "eth77" in result.reason
    assert "\n" not in result.reason


def test_ranks_that_are_late_are_ended() -> None:
    result = meet("gloo", 2, timeout=1)
    assert not result.met
    assert result.reason == "they did not meet within 1 seconds"
    assert result.seconds < 15
    left = [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if b"fedcmp.distributed.probe\0gloo\x001\0" in _read(path)
    ]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""
