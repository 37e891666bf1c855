"""Runs what a comparison needs until nothing is missing. Whatever ends it, calling it again goes on."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fedcmp.errors import FedcmpError
from fedcmp.lifetime import stop_on_signal
from fedcmp.report.formatting import duration
from fedcmp.runs.models import pick_device
from fedcmp.study.cells import FINAL, Job, Jobs
from fedcmp.study.execute import Answer, Executor, lighten
from fedcmp.study.ledger import Ledger
from fedcmp.study.place import Place
from fedcmp.study.schedule import remaining, wanted
from fedcmp.study.sheets import describe_options
from fedcmp.study.workers import Here, Processes, Share, Workers
from fedcmp.version import commit

Tell = Callable[[str], None]


class ComparisonEnded(FedcmpError):
    """Something outside the runs, a full disk for example, ended the comparison; it can go on."""


class Running(NamedTuple):
    """A job under way."""

    job: Job
    since: float


class Runner:
    """Gives jobs to workers and writes down what they answer.

    Args:
        jobs: of the comparison.
        ledger: what has been run.
        place: its folder.
        tell: shows a line to the user.
        renew: writes the tables; called when a reported run has ended.
    """

    def __init__(self, jobs: Jobs, ledger: Ledger, place: Place, tell: Tell, renew: Callable[[], object]) -> None:
        self.jobs, self.ledger, self.place = jobs, ledger, place
        self.tell, self.renew = tell, renew
        self.commit = commit()
        self._running: dict[int, Running] = {}
        self._last: dict[int, tuple[str, int]] = {}
        self._seconds: list[float] = []

    def run(self, workers: Workers, count: int) -> bool:
        """Until nothing is missing, or a signal asks to stop.

        Args:
            workers: who runs the jobs.
            count: how many they are.

        Returns:
            Whether it was asked to stop.

        Raises:
            ComparisonEnded: a worker says that going on is pointless.
        """
        stopped = False
        with stop_on_signal() as asked:
            try:
                while True:
                    if asked() and not stopped:
                        stopped = True
                        workers.stop()
                    if not stopped:
                        self._deal(workers)
                    if not self._running:
                        return stopped
                    for worker, job, answer in workers.answers(1.0):
                        since = self._running.pop(worker).since
                        if answer.ended is not None:
                            raise ComparisonEnded(answer.ended)
                        if answer.stopped:
                            if not stopped:
                                stopped = True
                                workers.stop()
                            continue
                        self._write(job, answer, time.perf_counter() - since, count)
            finally:
                workers.close()

    def _deal(self, workers: Workers) -> None:
        """A job for every idle worker: of the setting and seed that it has just had, whose features it keeps; else of
        one that nobody is at; else the next."""
        todo = self.missing()
        for worker in workers.idle():
            if not todo:
                return
            last = self._last.get(worker)
            others = {self._last[one] for one in self._running if one in self._last}
            job = next(
                (job for job in todo if _kept(job) == last),
                next((job for job in todo if _kept(job) not in others), todo[0]),
            )
            todo.remove(job)
            self._running[worker], self._last[worker] = Running(job, time.perf_counter()), _kept(job)
            workers.give(worker, job)

    def missing(self) -> list[Job]:
        """What is known to be needed, and neither done nor under way."""
        known = wanted(self.jobs, self.ledger.records)
        for job in known:
            self.ledger.claim(job)
        busy = {one.job.id for one in self._running.values()}
        todo = {job.id: job for job in known if job.id not in self.ledger.records and job.id not in busy}
        return list(todo.values())

    def tidy(self) -> None:
        """Makes runs light that a kill kept from it."""
        for id_, record in self.ledger.records.items():
            if record["status"] == "finished":
                lighten(self.place.cells / id_, self.jobs.study.keep_projectors)

    def failed(self) -> int:
        """How many of the runs that count have failed."""
        ids = {job.id for job in wanted(self.jobs, self.ledger.records)} & self.ledger.records.keys()
        return sum(self.ledger.records[id_]["status"] == "failed" for id_ in ids)

    def _write(self, job: Job, answer: Answer, seconds: float, count: int) -> None:
        assert answer.record is not None, "neither ended nor stopped"
        record = {**answer.record, "commit": self.commit}
        self.ledger.add(record)
        if record["status"] == "finished":
            lighten(self.place.cells / job.id, self.jobs.study.keep_projectors)
        if job.cell.stage == FINAL:
            self.renew()
        self._seconds.append(seconds)
        left = remaining(self.jobs, self.ledger.records)
        how = f"failed: {record['error']}" if record["status"] == "failed" else _loss(job, record)
        done = len({one.id for one in wanted(self.jobs, self.ledger.records) if one.id in self.ledger.records})
        mean = sum(self._seconds) / len(self._seconds)
        rest = f", about {duration(left * mean / min(count, left))} left" if left else ""
        self.tell(
            f"{done:>{len(str(done + left))}}/{done + left}  {self._title(job)}  {how}  ({duration(seconds)}{rest})"
        )

    def _title(self, job: Job) -> str:
        cell, labels = job.cell, [*self.jobs.bounds, *self.jobs.methods]
        stage = f"seed {cell.seed}" if cell.stage == FINAL else "tuning"
        parts = ((cell.setting, self.jobs.settings), (stage, ["tuning"]), (cell.method, labels))
        columns = [text.ljust(max(map(len, texts))) for text, texts in parts]
        return "  ".join([*columns, describe_options(cell.options)]).rstrip()


def start_workers(jobs: Sequence[Job], place: Place, asked: int | None) -> tuple[Workers, int]:
    """Workers for jobs, and how many: as many as asked for, or one a GPU, or one a core; no more than jobs."""
    gpus = _gpus() if any(pick_device(job.config.run.device).type == "cuda" for job in jobs) else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = asked or (len(gpus) or cores)
    if asked is None:
        count = max(1, min(count, len(jobs)))
    make = functools.partial(Executor, place.cells, place.name, place.features)
    if count == 1:
        return Here(make(alone=True)), 1
    threads = max(1, cores // count)
    shares = [Share(threads, gpus[worker % len(gpus)] if gpus else None) for worker in range(count)]
    return Processes(make, shares), count


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would call each GPU that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _kept(job: Job) -> tuple[str, int]:
    return job.cell.setting, job.cell.seed


def _loss(job: Job, record: dict) -> str:
    if job.cell.stage == FINAL:
        return f"test loss {record['test']['loss']:.4f}"
    return f"validation loss {record['val_loss']:.4f}"
