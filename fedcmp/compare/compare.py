"""A comparison from its spec to its tables: runs what is missing. Calling it again goes on."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fedcmp.compare.folder import Ledger, Place, open_place
from fedcmp.compare.inputs import check_inputs, encode_features, open_jobs
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.results import evaluate
from fedcmp.compare.run import Executor, lighten
from fedcmp.compare.schedule import missing, remaining, wanted
from fedcmp.compare.spec import Study
from fedcmp.compare.tables import describe_options, make_tables
from fedcmp.compare.workers import Here, Processes, Share
from fedcmp.errors import ConfigError, FedcmpError
from fedcmp.lifetime import stop_on_signal
from fedcmp.locking import locked
from fedcmp.report.comparison.results import FINAL, Result
from fedcmp.report.formatting import duration
from fedcmp.runs.models import pick_device
from fedcmp.version import commit

Tell = Callable[[str], None]


class ComparisonEnded(FedcmpError):
    """Something outside the runs, a full disk for example, ended the comparison; it can go on."""


class Compared(NamedTuple):
    """The outcome of a comparison."""

    folder: Path
    tables: dict[str, str]
    """By kind: text, md, csv, tex, json."""
    stopped: bool
    """It was asked to stop before all was done."""
    failed: int
    """How many of the wanted runs failed."""


def compare(
    study: Study,
    out: Path | None = None,
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    command: str = "",
    tell: Tell = lambda line: None,
    on_folder: Callable[[Path], None] = lambda folder: None,
) -> Compared:
    """Runs what is missing, and writes the tables.

    Args:
        study: what is compared.
        out: the comparison's folder, new or begun; None: ``runs/compare-<config>-N``.
        workers: processes that run at once; None: one a GPU, or one a core.
        retry_failed: run failed runs again.
        command: what the user typed, for the record.
        tell: shows a line of progress.
        on_folder: called with the folder before the work begins.

    Raises:
        ConfigError, DataError: an option or a config is wrong, or a run would be refused; nothing has been run.
        RunFolderError: the folder has other files, cannot be written, or another comparison is at work in it.
        ComparisonEnded: something outside the runs ended it.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    jobs = Jobs(study)
    new = out is None or not Place(out).is_begun()
    if new:
        check_inputs(jobs)
    place = open_place(out, Path(study.file).stem if study.file else "demo")
    with locked(place.path):
        ledger = Ledger(place.runs)
        if retry_failed:
            ledger.forget_failed()
        if not new and remaining(jobs, ledger.results):
            check_inputs(jobs)
        place.write(study, jobs, command)
        on_folder(place.path)
        runner = Runner(jobs, ledger, place, tell)
        runner.tidy()
        todo, stopped = runner.todo(), False
        if todo:
            runner.write_tables()
            cost = encode_features(open_jobs(jobs, ledger.results), place.features)
            place.write(study, jobs, command, cost)
            tell(f"features: {cost['pictures']:,} pictures, {cost['encoded']:,} encoded ({duration(cost['seconds'])})")
            crew, count = start_workers(todo, place, workers)
            left = remaining(jobs, ledger.results)
            what = f"settings: {', '.join(jobs.settings)}; methods: {', '.join([*jobs.methods, *jobs.bounds])}"
            tell(f"{what}; {left} run{'s' * (left != 1)} to do, {count} at once")
            stopped = runner.run(crew, count)
            if not stopped:
                shutil.rmtree(place.features, ignore_errors=True)
        return Compared(place.path, runner.write_tables(), stopped, runner.failed())


class Runner:
    """Gives jobs to workers and writes down their answers.

    Args:
        jobs: of the comparison.
        ledger: the runs that have ended.
        place: its folder.
        tell: shows a line to the user.
    """

    def __init__(self, jobs: Jobs, ledger: Ledger, place: Place, tell: Tell) -> None:
        self.jobs, self.ledger, self.place, self.tell = jobs, ledger, place, tell
        self.commit = commit()
        self._running: dict[int, tuple[Job, float]] = {}
        """Worker -> its job, and since when."""
        self._last: dict[int, tuple[str, int]] = {}
        """Worker -> (setting, seed) of its last job, of which it keeps the features."""
        self._seconds: list[float] = []

    def run(self, workers: Here | Processes, count: int) -> bool:
        """Until nothing is missing, or a signal asks to stop; returns whether one did.

        Args:
            workers: they run the jobs.
            count: how many they are.

        Raises:
            ComparisonEnded: a worker reports that further runs are pointless.
        """
        stopped = False
        with stop_on_signal() as asked:
            try:
                while True:
                    if asked() and not stopped:
                        stopped = True
                        workers.stop()
                    if not stopped:
                        self._give(workers)
                    if not self._running:
                        return stopped
                    for worker, job, answer in workers.answers(1.0):
                        since = self._running.pop(worker)[1]
                        if answer.ended is not None:
                            raise ComparisonEnded(answer.ended)
                        if answer.result is not None:
                            self._write(job, answer.result, time.perf_counter() - since, count)
                        elif not stopped:
                            stopped = True
                            workers.stop()
            finally:
                workers.close()

    def _give(self, workers: Here | Processes) -> None:
        """A job for every idle worker: of the setting and seed of its last one; else of one that no other worker has;
        else the next."""
        todo = self.todo()
        for worker in workers.idle():
            if not todo:
                return
            others = {self._last[one] for one in self._running if one in self._last}
            groups = {(job.cell.setting, job.cell.seed): job for job in reversed(todo)}
            free = [job for job in todo if (job.cell.setting, job.cell.seed) not in others]
            job = groups.get(self._last.get(worker, ("", 0))) or (free or todo)[0]
            todo.remove(job)
            self._running[worker] = job, time.perf_counter()
            self._last[worker] = job.cell.setting, job.cell.seed
            workers.give(worker, job)

    def todo(self) -> list[Job]:
        """The runs that are known to be needed, and neither done nor under way."""
        for job in wanted(self.jobs, self.ledger.results):
            self.ledger.claim(job)
        busy = {job.id for job, _ in self._running.values()}
        return [job for job in missing(self.jobs, self.ledger.results) if job.id not in busy]

    def tidy(self) -> None:
        """Removes what a kill left in finished runs."""
        for id_, result in self.ledger.results.items():
            if result.finished:
                lighten(self.place.cells / id_, self.jobs.study.keep_projectors)

    def failed(self) -> int:
        """How many of the wanted runs have failed."""
        ids = {job.id for job in wanted(self.jobs, self.ledger.results)}
        return sum(id_ in ids and not result.finished for id_, result in self.ledger.results.items())

    def write_tables(self) -> dict[str, str]:
        """The tables by kind, written to the folder."""
        tables = make_tables(self.place.name, self.jobs, evaluate(self.jobs, self.ledger.results))
        self.place.write_tables({kind: text for kind, text in tables.items() if kind != "text"})
        return tables

    def _write(self, job: Job, result: Result, seconds: float, count: int) -> None:
        self.ledger.add(result._replace(record={**result.record, "commit": self.commit}))
        if result.finished:
            lighten(self.place.cells / job.id, self.jobs.study.keep_projectors)
        cell = job.cell
        if cell.stage == FINAL:
            self.write_tables()
        if result.finished:
            name, value = (
                ("test", result.test["loss"]) if cell.stage == FINAL else ("validation", result.record["val_loss"])
            )
            how = f"{name} loss {value:.4f}"
        else:
            how = f"failed: {result.record['error']}"
        self._seconds.append(seconds)
        left = remaining(self.jobs, self.ledger.results)
        done = len({one.id for one in wanted(self.jobs, self.ledger.results)} & self.ledger.results.keys())
        mean = sum(self._seconds) / len(self._seconds)
        rest = f", about {duration(left * mean / min(count, left))} left" if left else ""
        stage = f"seed {cell.seed}" if cell.stage == FINAL else "tuning"
        columns = [cell.setting, stage, cell.method, describe_options(cell.options), how]
        title = "  ".join(column for column in columns if column)
        self.tell(f"{done:>{len(str(done + left))}}/{done + left}  {title}  ({duration(seconds)}{rest})")


def start_workers(jobs: Sequence[Job], place: Place, asked: int | None) -> tuple[Here | Processes, int]:
    """Workers for jobs, and how many: as many as asked for, or one a GPU, or one a core; no more than jobs."""
    gpus = []
    if any(pick_device(job.config.run.device).type == "cuda" for job in jobs):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = asked or min(len(gpus) or cores, len(jobs))
    make = functools.partial(Executor, place.cells, place.name, place.features)
    if count == 1:
        return Here(make(alone=True)), 1
    shares = [Share(max(1, cores // count), gpus[worker % len(gpus)] if gpus else None) for worker in range(count)]
    return Processes(make, shares), count
