"""Who started this process, and what is refused before ranks meet."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from fedcmp.distributed import launch
from fedcmp.distributed.launch import LaunchConfig, open_team, rank_of, started_by
from fedcmp.distributed.team import Solo, is_server, leads
from fedcmp.errors import ConfigError
from fedcmp.lifetime import stop_on_signal


@pytest.mark.parametrize(("environment", "starter"), [
    ({}, "nobody"),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, "nobody"),
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, "nobody"),
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "bash"}, "srun"),
    ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "torchrun"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "torchrun"),
], ids=str)  # fmt: skip
def test_the_launcher_is_told_by_what_it_leaves(environment: dict[str, str], starter: str) -> None:
    assert started_by(environment) == starter


def test_a_shell_that_srun_opened_is_nobody_and_a_step_inside_it_is_not() -> None:
    shell = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000"}
    assert started_by(shell, terminal=True) == "nobody"
    assert started_by(shell, terminal=False) == "srun"


@pytest.mark.parametrize(("environment", "ranks"), [
    ({}, None),
    ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, None),
    ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 1)),
    ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, (2, 0)),
])  # fmt: skip
def test_a_rank_is_known_before_ranks_meet(environment: dict[str, str], ranks: tuple[int, int] | None) -> None:
    assert rank_of(environment) == ranks


def test_one_process_is_a_team_of_its_own() -> None:
    with open_team(LaunchConfig(), torch.device("cpu")) as team:
        assert isinstance(team, Solo)
        assert is_server(team)
        assert leads(team)
        assert (team.share(3), team.collect("x")) == (3, ["x"])
        with pytest.raises(ZeroDivisionError):
            team.agree(ZeroDivisionError())
    with (
        pytest.raises(ConfigError, match=r"launch\.group_size=2, but this run has one rank"),
        open_team(LaunchConfig(group_size=2), torch.device("cpu")),
    ):
        pass


def test_two_ranks_on_one_gpu_are_refused_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "started_by", lambda: "torchrun")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=r"2 ranks on this node, but it has 1 GPUs; .*launch\.share_gpu=true"),
        open_team(LaunchConfig(), torch.device("cuda")),
    ):
        pass


def test_ranks_that_see_one_gpu_each_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")  # srun --gpus-per-task=1
    assert launch._gpus(LaunchConfig(), 2) == {"parallel_devices": [torch.device("cuda", 0)] * 2}
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    assert launch._gpus(LaunchConfig(share_gpu=True), 2)["process_group_backend"] == "gloo"


@pytest.mark.parametrize("key", ["devices", "group_size", "timeout"])
def test_ranges_are_checked(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"launch\.{key} must be at least"):
        LaunchConfig(**{key: 0}).validate()


def test_a_llm_is_sharded_over_groups_only() -> None:
    with pytest.raises(ConfigError, match=r"launch\.shard_llm needs groups of several ranks"):
        LaunchConfig(shard_llm=True).validate()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    asked: list[bool] = []

    def inside() -> None:
        with stop_on_signal() as stop:
            asked.append(stop())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert asked == [False]
