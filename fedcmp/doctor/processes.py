"""How processes are started here, and whether they can meet."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping

from fedcmp.distributed.launch import started_by
from fedcmp.distributed.probe import LAUNCHER_VARIABLES, Meeting, meet
from fedcmp.doctor.finding import Finding, fatal, ok, warn

SBATCH = "sbatch launch/slurm.sbatch CONFIG run.dir=PATH"


def left_overs(environment: Mapping[str, str]) -> Finding:
    """Whether variables of a launcher are set where there is none."""
    found = [name for name in LAUNCHER_VARIABLES if name in environment]
    by_launcher = "TORCHELASTIC_RUN_ID" in environment or environment.get("LT_CLI_USED") == "1"
    waits = {"RANK", "WORLD_SIZE"} & set(found)
    if by_launcher or not waits:
        return ok("launched by torchrun or `fabric run`" if by_launcher else "no left-overs of a launcher")
    others = environment.get("WORLD_SIZE", "several")
    return warn(
        f"{', '.join(found)} set, but neither torchrun nor `fabric run` is at work: a run would take itself for one of "
        f"{others} ranks and wait for the others",
        f"unset {' '.join(found)}, unless a launcher of your own sets them",
    )


def slurm(environment: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> Finding:
    """Where this process stands in SLURM, and how a run is started from there.

    Args:
        environment: SLURM's variables.
        which: a program's path, or None.
    """
    tools = [tool for tool in ("srun", "sbatch") if which(tool)]
    job, tasks = environment.get("SLURM_JOB_ID"), environment.get("SLURM_NTASKS", "1")
    if job is None:
        if not tools:
            return ok("no SLURM here")
        return ok(f"SLURM: {' and '.join(tools)} found, outside of an allocation", f"to start a run: {SBATCH}")
    if started_by(environment) == "srun":
        return ok(f"SLURM: rank {environment['SLURM_PROCID']} of a step of {environment['SLURM_STEP_NUM_TASKS']}")
    if "srun" not in tools:
        return warn(f"SLURM: inside job {job}, but srun is not found", "put SLURM's programs on the PATH")
    if tasks.isdecimal() and int(tasks) > 1 and started_by(environment) == "nobody":
        return warn(
            f"SLURM: job {job} has {tasks} tasks, but this process is no step of several: a run from here has one rank",
            f"srun fedcmp train CONFIG, or {SBATCH}",
        )
    return ok(f"SLURM: inside job {job} with {tasks} task{'s' * (tasks != '1')}")


def process_group(backend: str, num_ranks: int, needed: bool, probe: Callable[..., Meeting] = meet) -> Finding:
    """Whether ranks can meet.

    Args:
        backend: ``gloo`` or ``nccl``.
        num_ranks: how many try.
        needed: the run has several ranks; else it is only a warning.
        probe: starts them.
    """
    result = probe(backend, num_ranks)
    who = f"{num_ranks} ranks" if num_ranks > 1 else "1 rank"
    if result.met:
        return ok(f"{backend}: {who} met and added up in {result.seconds:.0f} seconds, imports among them")
    mend = "set NCCL_DEBUG=INFO and try `fedcmp train launch.devices=2`"
    if backend == "gloo":
        mend = "name a network interface that is up (ip -br addr), for example GLOO_SOCKET_IFNAME=lo"
    return (fatal if needed else warn)(f"{backend}: {who} cannot meet: {result.reason}", mend)
