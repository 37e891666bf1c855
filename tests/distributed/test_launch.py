"""Who started this process, what is refused before ranks meet, groups of ranks, and signals."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from fedcmp.distributed import launch
from fedcmp.distributed.launch import LaunchConfig, open_team, rank_of, started_by
from fedcmp.distributed.team import Solo, assign, is_server, leads, make_topology
from fedcmp.errors import ConfigError
from fedcmp.lifetime import stop_on_signal

STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(("environment", "starter", "rank"), [
    ({}, "none", None),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, "none", None),
    ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, "none", None),
    ({**STEP, "SLURM_JOB_NAME": "bash"}, "srun", (2, 0)),
    (TORCHRUN, "torchrun", (3, 1)),
    ({**TORCHRUN, "WORLD_SIZE": "1"}, "torchrun", None),
    ({**STEP, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}, "torchrun", (3, 1)),
], ids=str)  # fmt: skip
def test_the_launcher_is_known_by_its_variables(
    environment: dict[str, str], starter: str, rank: tuple[int, int] | None
) -> None:
    assert started_by(environment, terminal=False) == starter
    assert rank_of(environment) == rank
    shell = {**STEP, "SLURM_PTY_PORT": "40000"}
    assert (started_by(shell, terminal=True), started_by(shell, terminal=False)) == ("none", "srun")


def test_one_process_is_a_team_of_its_own() -> None:
    with open_team(LaunchConfig(), torch.device("cpu")) as team:
        assert isinstance(team, Solo)
        assert is_server(team)
        assert leads(team)
        assert (team.share(3), team.collect("x")) == (3, ["x"])
        with pytest.raises(ZeroDivisionError):
            team.agree(ZeroDivisionError())
    with pytest.raises(ConfigError, match=r"launch\.group_size"):
        open_team(LaunchConfig(group_size=2), torch.device("cpu")).__enter__()
    with pytest.raises(ConfigError, match=r"launch\.group_size=4"):
        make_topology(6, 4)


def test_ranks_share_a_gpu_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"launch\.share_gpu"):
        launch._gpus(LaunchConfig(), 2)
    assert launch._gpus(LaunchConfig(share_gpu=True), 2)["process_group_backend"] == "gloo"
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")  # srun --gpus-per-task=1
    assert launch._gpus(LaunchConfig(), 2) == {"parallel_devices": [torch.device("cuda", 0)] * 2}


@pytest.mark.parametrize("num_groups", [1, 3])
def test_groups_fill_the_ranks_and_every_wave_is_assigned_once(num_groups: int) -> None:
    topology, costs = make_topology(6, 6 // num_groups), [9, 8, 7, 7, 5, 3, 2, 2, 1]
    assert topology.num_groups == num_groups
    for rank in range(6):
        assert topology.members(topology.group(rank))[topology.place(rank)] == rank
    assigned = assign(costs, num_groups)
    assert sorted(wave for waves in assigned for wave in waves) == list(range(len(costs)))
    loads = [sum(costs[wave] for wave in waves) for waves in assigned]
    assert max(loads) - min(loads) <= max(costs), "no group waits long"
    assert all(waves == tuple(sorted(waves)) for waves in assigned), "long waves first"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(number) is before
