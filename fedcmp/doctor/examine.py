"""All checks, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedcmp.config import Config
from fedcmp.data.settings import expand
from fedcmp.doctor import checks
from fedcmp.doctor.checks import Finding, fatal

Check = Callable[[], Finding | Sequence[Finding]]


def examine(config: Config, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The findings, each as soon as it is known; a few seconds in all. Nothing is changed.

    Args:
        config: the run whose needs are looked at, checked; the default one needs little.
        environment: the variables of this process.
    """
    for name, check in _needed(config, environment).items():
        try:
            found = check()
        except Exception as error:  # a check that fails must not hide the others
            found = fatal(f"{name}: the check itself failed: {type(error).__name__}", "please report it")
        yield from [found] if isinstance(found, Finding) else found


def _needed(config: Config, environment: Mapping[str, str]) -> dict[str, Check]:
    """The checks for a config by name, in their order."""
    launch, run, cuda = config.launch, config.run, checks.read_cuda()
    several = launch.devices > 1
    made: dict[str, Check] = {
        "python": checks.python,
        "packages": checks.packages,
        "devices": lambda: checks.devices(cuda, run.device),
        "threads": lambda: checks.threads(environment, launch.devices),
        "left-overs": lambda: checks.left_overs(environment),
        "slurm": lambda: checks.slurm(environment),
        "gloo": lambda: checks.process_group("gloo", 2, several and not cuda.gpus),
        "nccl": lambda: checks.process_group("nccl", min(2, len(cuda.gpus)), several),
        "wandb": lambda: checks.weights_and_biases(config.wandb, environment),
        "runs": lambda: checks.writable(Path(run.dir or "runs").expanduser(), "run folders", "run.dir"),
        "cache": lambda: checks.writable(expand(config.data.cache_dir or ""), "feature cache", "data.cache_dir"),
        "shared data": lambda: checks.shared_data(environment),
        "demo": checks.demo,
        "models": lambda: checks.models(config.model),
        "data": lambda: checks.data(config.data),
        "captions": lambda: checks.captions(config),
    }
    left_out = {
        "captions": config.data.kind == "scenes" and config.model.llm == "demo",
        "nccl": not cuda.gpus or run.device == "cpu",
        "cache": config.data.cache_dir is None,
    }
    return {name: check for name, check in made.items() if not left_out.get(name, False)}
