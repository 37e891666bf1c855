"""Who started this process, by the variables that launchers leave. Imports nothing heavy: errors are told with it."""

from __future__ import annotations

import os
from collections.abc import Mapping


def started_by(environment: Mapping[str, str] = os.environ, terminal: bool | None = None) -> str:
    """Who started this process: ``torchrun`` (``fabric run`` is one), ``srun`` (a step of several tasks) or ``nobody``.

    A shell inside a SLURM allocation, whatever its job name, is ``nobody``: it has no step with several tasks, or it is
    one that ``srun --pty`` opened.

    Args:
        environment: the variables.
        terminal: whether standard input is a terminal; None: ask.

    >>> started_by({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    'nobody'
    """
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return "torchrun"
    if terminal is None:
        terminal = os.isatty(0)
    shell = terminal and "SLURM_PTY_PORT" in environment  # its variables are those of a step with that many tasks
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment and not shell:
        return "srun"
    return "nobody"


def rank_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """This process's rank in the run and on its node, before ranks have met; None where there is only one.

    >>> rank_of({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"})
    (5, 1)
    """
    world, rank, local = {
        "torchrun": ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
        "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
        "nobody": ("", "", ""),
    }[started_by(environment)]
    if int(environment.get(world, "1")) == 1:
        return None
    return int(environment[rank]), int(environment[local])
