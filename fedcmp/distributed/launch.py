"""From a small config to ranks: alone, under ``fabric run``, torchrun or ``srun``, or by starting torchrun itself.

Importing this imports nothing heavy: the command line asks it for the rank before it prints an error.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fedcmp.errors import ConfigError
from fedcmp.lifetime import OURS

if TYPE_CHECKING:
    import torch

    from fedcmp.distributed.team import Team

LONGEST = 30 * 24 * 3600
"""Seconds that a collective may wait."""
FIRST_PORT, PORTS = 15000, 15000
"""Below the ports that systems hand out by themselves, so that no other connection is in the way."""


@dataclass
class LaunchConfig:
    """Processes of a run."""

    devices: int = 1
    """Processes that fedcmp starts on this machine; under `fabric run`, torchrun or srun theirs count."""
    group_size: int = 1
    """Ranks that train one client together, splitting its batches; must divide the number of ranks."""
    timeout: int = 1800
    """Seconds after which a collective or rendezvous without an answer ends the run, from 60 to 2592000."""
    shard_llm: bool = False
    """Spread the frozen language model's decoder layers over the ranks of a group."""
    share_gpu: bool = False
    """Allow two ranks on one GPU."""

    def validate(self, prefix: str = "launch") -> None:
        for key, least in (("devices", 1), ("group_size", 1), ("timeout", 60)):
            if getattr(self, key) < least:
                raise ConfigError(f"{prefix}.{key} must be at least {least}, got {getattr(self, key)}")
        if self.timeout > LONGEST:
            raise ConfigError(f"{prefix}.timeout must be at most {LONGEST} (30 days), got {self.timeout}")
        if self.shard_llm and self.group_size == 1:
            raise ConfigError(f"{prefix}.shard_llm needs groups of several ranks, but {prefix}.group_size is 1")


def started_by(environment: Mapping[str, str] = os.environ, terminal: bool | None = None) -> str:
    """Who started this process: ``torchrun`` (``fabric run`` is one), ``srun`` (a step of several tasks) or ``none``.

    A shell inside a SLURM allocation, whatever its job name, is ``none``: it has no step with several tasks, or it is
    one that ``srun --pty`` opened.

    Args:
        environment: the variables.
        terminal: whether standard input is a terminal; None: ask.

    >>> started_by({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    'none'
    """
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return "torchrun"
    terminal = os.isatty(0) if terminal is None else terminal
    shell = terminal and "SLURM_PTY_PORT" in environment  # its variables are those of a step with that many tasks
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment and not shell:
        return "srun"
    return "none"


def rank_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """This process's rank in the run and on its node, before ranks have met; None where there is only one.

    >>> rank_of({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"})
    (5, 1)
    """
    world, rank, local = {
        "torchrun": ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
        "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
        "none": ("", "", ""),
    }[started_by(environment)]
    return None if int(environment.get(world, "1")) == 1 else (int(environment[rank]), int(environment[local]))


def step_variables(step: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would tell this rank, from what SLURM says about its step.

    Lightning's own environment reads the job instead: it refuses ``srun --ntasks=2``, takes a job named ``bash`` for a
    shell, and has one port for all steps of a job.

    >>> step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "9", "SLURM_STEP_NUM_NODES": "3"}
    >>> step |= {"SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}
    >>> " ".join(step_variables({**step, "SLURM_PROCID": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}).values())
    '9 8 0 2 1 gpu07 15708'
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment

    tasks = re.findall(r"(\d+)(?:\(x(\d+)\))?", step["SLURM_STEP_TASKS_PER_NODE"])
    by_node = [int(count) for count, nodes in tasks for _ in range(int(nodes or 1))]
    address = "127.0.0.1"  # a node's name may lead nowhere
    if int(step.get("SLURM_STEP_NUM_NODES", "1")) > 1:
        address = SLURMEnvironment.resolve_root_node_address(step["SLURM_STEP_NODELIST"])
    # jobs and steps that share a node do not meet
    port = FIRST_PORT + (101 * int(step.get("SLURM_JOB_ID", "0")) + int(step.get("SLURM_STEP_ID", "0"))) % PORTS
    return {
        "WORLD_SIZE": step["SLURM_STEP_NUM_TASKS"],
        "RANK": step["SLURM_PROCID"],
        "LOCAL_RANK": step["SLURM_LOCALID"],
        "GROUP_RANK": step["SLURM_NODEID"],
        "LOCAL_WORLD_SIZE": str(by_node[int(step["SLURM_NODEID"])]),
        "MASTER_ADDR": step.get("MASTER_ADDR", address),
        "MASTER_PORT": step.get("MASTER_PORT", str(port)),
    }


def start_ranks(config: LaunchConfig, arguments: Sequence[str]) -> int:
    """Runs torchrun in this process, with ``config.devices`` ranks that run ``fedcmp`` with the same arguments.

    The rendezvous picks a free port itself, so that runs on one host cannot meet.

    Returns:
        The exit code: 0, that of the rank that failed first, 130 after Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it is meant for the ranks: torchrun would die of it and leave them
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(config.timeout))  # SIGTERM: a round may take longer
    os.environ[OURS] = "1"
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.ERROR)  # the ranks report Ctrl-C
    try:
        main(["--standalone", f"--nproc-per-node={config.devices}", "-m", "fedcmp", *arguments])
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 1
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    return 0


@contextmanager
def open_team(config: LaunchConfig, device: torch.device) -> Iterator[Team]:
    """The ranks of this run; the process group ends with the block.

    Args:
        config: how many ranks make a group, and how long they wait.
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: groups do not fill the ranks, or ranks outnumber the GPUs of this node.
    """
    import torch

    from fedcmp.distributed.team import Groups, Solo

    starter = started_by()
    if starter == "none":
        if config.group_size > 1:
            raise ConfigError(f"launch.group_size={config.group_size}, but this run has one rank; raise launch.devices")
        yield Solo(device)
        return

    from lightning import Fabric
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    from fedcmp.distributed.pulse import Pulse
    from fedcmp.distributed.strategy import ClientGroupStrategy, close

    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # ranks introduce themselves at length
    if starter == "srun":
        os.environ.update(step_variables(os.environ))
    environment = TorchElasticEnvironment()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", environment.world_size()))
    # `fabric run` gives every rank the threads of the whole node, and ranks that contend are many times slower
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // max(1, local))))
    by_fabric = os.environ.get("LT_CLI_USED") == "1"  # `fabric run` says how many there are, and sets them up
    on_gpus = device.type == "cuda" and os.environ.get("LT_ACCELERATOR") != "cpu"
    placed = _gpus(config, local) if on_gpus else {}
    strategy = ClientGroupStrategy(config.group_size, timedelta(seconds=config.timeout), **placed)
    options: dict[str, Any] = {"strategy": strategy, "plugins": [environment]}
    if not by_fabric:
        devices = min(local, torch.cuda.device_count()) if device.type == "cuda" else local
        nodes = max(1, environment.world_size() // local)
        options |= {"accelerator": device.type, "devices": devices, "num_nodes": nodes}
    with ExitStack() as stack:
        stack.callback(close)
        fabric = Fabric(**options)
        if not by_fabric:
            fabric.launch()
        pulse: Pulse | None = None
        if strategy.topology.world_size > 1:
            pulse = Pulse(strategy.global_rank, strategy.topology.world_size, config.group_size)
            stack.callback(pulse.stop)
        yield Groups(strategy, config.shard_llm, pulse)


def _gpus(config: LaunchConfig, local: int) -> dict[str, Any]:
    """What the strategy must know where a node's ranks see fewer GPUs than there are ranks."""
    import torch

    seen = torch.cuda.device_count()
    if local <= seen:
        return {}
    own = seen == 1 and int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) >= local  # srun --gpus-per-task=1
    if not own and not config.share_gpu:
        raise ConfigError(
            f"{local} ranks on this node, but it has {seen} GPUs; start fewer ranks, or say launch.share_gpu=true"
        )
    placed = {"parallel_devices": [torch.device("cuda", rank % seen) for rank in range(local)]}
    return placed if own else {**placed, "process_group_backend": "gloo"}  # nccl refuses two ranks on one GPU
