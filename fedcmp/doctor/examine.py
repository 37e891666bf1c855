"""All checks, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedcmp.config import Config
from fedcmp.data.settings import expand
from fedcmp.doctor import hardware, processes, software, storage
from fedcmp.doctor.finding import Finding, fatal, ok
from fedcmp.tracking.wandb import WandbConfig, has_key

Check = Callable[[], Finding | Sequence[Finding]]


def examine(config: Config, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The findings, each as soon as it is known; a few seconds in all. Nothing is changed.

    Args:
        config: the run whose needs are looked at, checked; the default one needs little.
        environment: the variables of this process.
    """
    for name, check in checks(config, environment).items():
        try:
            found = check()
        except Exception as error:  # one check that breaks must not hide the others
            found = fatal(f"{name}: the check itself failed: {type(error).__name__}", "please report it")
        yield from [found] if isinstance(found, Finding) else found


def checks(config: Config, environment: Mapping[str, str]) -> dict[str, Check]:
    """Every check by its name, in the order in which they are made."""
    launch, run, cuda = config.launch, config.run, hardware.read_cuda()
    several = launch.devices > 1
    made: dict[str, Check] = {
        "python": software.python,
        "packages": software.packages,
        "devices": lambda: hardware.devices(cuda, run.device),
        "threads": lambda: hardware.threads(environment, launch.devices),
        "left-overs": lambda: processes.left_overs(environment),
        "slurm": lambda: processes.slurm(environment),
        "gloo": lambda: processes.process_group("gloo", 2, several and not cuda.gpus),
        "nccl": lambda: processes.process_group("nccl", min(2, len(cuda.gpus)), several),
        "wandb": lambda: weights_and_biases(config.wandb, environment),
        "runs": lambda: storage.writable(Path(run.dir or "runs").expanduser(), "run folders", "run.dir"),
        "cache": lambda: storage.writable(expand(config.data.cache_dir or ""), "feature cache", "data.cache_dir"),
        "shared data": lambda: storage.shared_data(environment),
        "demo": storage.demo,
        "models": lambda: storage.models(config.model),
        "data": lambda: storage.data(config.data),
        "captions": lambda: storage.captions(config),
    }
    left_out = {
        "captions": config.data.kind == "scenes" and config.model.llm == "demo",
        "nccl": not cuda.gpus or run.device == "cpu",
        "cache": config.data.cache_dir is None,
    }
    return {name: check for name, check in made.items() if not left_out.get(name, False)}


def weights_and_biases(config: WandbConfig, environment: Mapping[str, str]) -> Finding:
    """Whether W&B can be reached as the config wants it; a key is looked for and never shown."""
    if config.mode != "online":
        where = "files in the run folder" if config.mode == "offline" else "nothing is logged there"
        return ok(f"Weights & Biases: {config.mode}, {where}")
    if has_key(environment):
        return ok("Weights & Biases: online, a key is there")
    return fatal(
        "Weights & Biases: online, but there is no key",
        "wandb login, or set WANDB_API_KEY, or use wandb.mode=offline and `wandb sync` later",
    )
