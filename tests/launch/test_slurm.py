"""Jobs and steps on a real SLURM: ``launch/check --slurm`` starts a private one around these tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import FEDCMP, SCRIPTS, SMALL, environment, naming, summary, until, variable

ROOT = Path(__file__).parent.parent.parent


def why_not() -> str:
    """Why these tests cannot run here; empty if they can."""
    missing = [command for command in ("sbatch", "srun", "scontrol") if shutil.which(command) is None]
    if missing:
        return f"needs SLURM, and there is no {', '.join(missing)}"
    if not os.environ.get("FEDCMP_SLURM"):
        return "would use the SLURM of this machine: run launch/check --slurm, or set FEDCMP_SLURM=1"
    return ""


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def slurm(*command: str, folder: Path | None = None) -> str:
    """The output of a SLURM command, under an environment in which no ``fedcmp`` is on the path."""
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != SCRIPTS)
    # nodes of the private SLURM have names that lead nowhere; all of them are this host
    here = {"PATH": path, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    lab = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
    done = subprocess.run(
        command, cwd=folder, env=environment(**here, **lab), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Job(NamedTuple):
    """A job of ``launch/slurm.sbatch``."""

    id: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / f"fedcmp-{self.id}.log").read_text()

    def told(self, key: str) -> str:
        """What SLURM says of it, for example its ``JobState``."""
        words = slurm("scontrol", "--oneliner", "show", "job", self.id).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))

    def over(self) -> bool:
        return self.told("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose path has a space in it, with an environment that is not activated."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    (folder / ".venv").symlink_to(SCRIPTS.parent)
    (folder / "launch").symlink_to(ROOT / "launch")
    return folder


@pytest.fixture
def submit(checkout: Path) -> Iterator[list[Job]]:
    """Where a test notes its jobs, so that none outlives it."""
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        slurm("scancel", "--quiet", job.id)


def sbatch(jobs: list[Job], folder: Path, options: Sequence[str], words: Sequence[str]) -> Job:
    script = "launch/slurm.sbatch"
    jobs.append(Job(slurm("sbatch", "--parsable", *options, script, *words, folder=folder), folder))
    return jobs[-1]


def test_a_job_goes_on_after_its_time_limit_and_a_job_that_fails_does_not(
    checkout: Path, submit: list[Job], alone: str
) -> None:
    job = sbatch(submit, checkout, ["--nodes=2", "--job-name=bash"], SMALL)
    run = checkout / "runs" / f"slurm-{job.id}"
    until(lambda: any(variable(pid, "SLURM_STEP_ID") for pid in naming(Path(f"run.dir=runs/slurm-{job.id}"))))
    slurm("scancel", "--signal=USR1", job.id)  # before there are ranks; SLURM does so before a time limit
    wrong = sbatch(submit, checkout, ["--nodes=1", "--time=5"], ["nonsense=1", "run.dir=my run"])
    until(wrong.over)
    assert (wrong.told("JobState"), wrong.told("Restarts")) == ("FAILED", "0"), wrong.log
    assert "unknown key `nonsense`" in wrong.log
    until(job.over)
    assert (job.told("JobState"), job.told("Restarts")) == ("COMPLETED", "1"), job.log
    assert "stopped after round 1;" in job.log
    assert "stopped before its end: back into the queue" in job.log
    assert summary(run)["exit"] == "finished"
    assert summary(run)["device"].startswith("2 x cpu")
    assert summary(run)["projector_sha256"] == alone


def test_a_job_that_hears_of_its_limit_too_late_goes_on_and_one_that_is_cancelled_has_lost_no_rank(
    checkout: Path, submit: list[Job]
) -> None:
    run = checkout / "run"
    words = [*SMALL, "federation.passes=400", "federation.rounds=2000", f"run.dir={run}"]
    job = sbatch(submit, checkout, ["--nodes=1", "--time=1", "--signal=URG@1"], words)  # SIGTERM is all that it gets
    until(lambda: job.told("Restarts") == "1" or job.over(), 240)
    assert (job.over(), "stopped before its end: back into the queue" in job.log) == (False, True), job.log
    slurm("scancel", job.id)  # it waits in the queue
    job = sbatch(submit, checkout, ["--nodes=1"], words)
    until(lambda: any(variable(pid, "LOCAL_RANK") for pid in naming(run)))  # ranks that do not listen yet
    slurm("scancel", job.id)
    until(job.over)
    until(lambda: "ended from outside" in job.log)
    assert not (run / "lost-ranks.txt").exists(), job.log


def test_a_task_of_an_array_goes_back_into_the_queue_alone(checkout: Path, submit: list[Job]) -> None:
    number = "${oc.env:SLURM_ARRAY_TASK_ID}"
    words = [*SMALL, "federation.passes=20", "federation.rounds=60"]
    words += [f"run.seed={number}", f"run.dir=runs/seed-{number}"]
    array = sbatch(submit, checkout, ["--nodes=1", "--array=1-2"], words)
    tasks = [Job(f"{array.id}_{number}", checkout) for number in (1, 2)]
    runs = [checkout / "runs" / f"seed-{number}" for number in (1, 2)]
    until(lambda: all((run / "metrics.jsonl").exists() for run in runs))
    slurm("scancel", "--signal=USR1", tasks[1].id)  # the task that has the id of the array
    for task in tasks:
        until(task.over, 240)
    assert [(task.told("JobState"), task.told("Restarts")) for task in tasks] == [
        ("COMPLETED", "0"),
        ("COMPLETED", "1"),
    ]
    assert [(summary(run)["exit"], summary(run)["seed"]) for run in runs] == [("finished", 1), ("finished", 2)]


def rank_of_job(folder: Path, number: str) -> int:
    """The process that is this rank of the run in a folder; it has begun to train."""
    until(lambda: (folder / "metrics.jsonl").is_file() and len((folder / "metrics.jsonl").read_text().splitlines()) > 1)
    (rank,) = [pid for pid in naming(folder) if variable(pid, "RANK") == number and variable(pid, "LOCAL_RANK")]
    return rank


def test_a_job_that_loses_a_rank_goes_on(checkout: Path, submit: list[Job], alone: str) -> None:
    run = checkout / "my run"
    job = sbatch(submit, checkout, ["--nodes=2", "--job-name=bash"], [*SMALL, f"run.dir={run}"])
    os.kill(rank_of_job(run, "1"), signal.SIGKILL)
    until(job.over, 240)
    # on a machine that is short of cores the next start may lose a rank, too, and the job goes on once more
    assert (job.told("JobState"), job.told("Restarts") in ("1", "2")) == ("COMPLETED", True), job.log
    assert "a rank was lost, 1 of at most 3 times without a new round: back into the queue" in job.log
    assert summary(run)["exit"] == "finished"
    assert summary(run)["projector_sha256"] == alone


def test_tasks_of_a_step_are_ranks(tmp_path: Path, alone: str) -> None:
    step = ["srun", "--nodes=2", "--ntasks=2", "--job-name=bash", "--kill-on-bad-exit=1", FEDCMP, "train", *SMALL]
    said = slurm(*step, f"run.dir={tmp_path / 'run'}")
    assert said.count("validation loss per token") == 1, said
    assert summary(tmp_path / "run")["device"].startswith("2 x cpu")
    assert summary(tmp_path / "run")["projector_sha256"] == alone
