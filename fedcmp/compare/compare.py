"""A comparison from its spec to its tables: runs what is missing. Calling it again goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import NamedTuple

from fedcmp.compare.folder import Ledger, Place, open_place
from fedcmp.compare.inputs import check_inputs, encode_features, open_jobs
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.results import evaluate
from fedcmp.compare.schedule import missing, remaining, wanted
from fedcmp.compare.spec import Study
from fedcmp.compare.tables import describe_options, make_tables
from fedcmp.compare.workers import Worker, num_cores, start_workers, visible_gpus
from fedcmp.errors import ConfigError
from fedcmp.lifetime import stop_on_signal
from fedcmp.locking import locked
from fedcmp.report.comparison.results import FINAL, Result
from fedcmp.report.formatting import duration
from fedcmp.runs.models import pick_device
from fedcmp.version import commit

Tell = Callable[[str], None]


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
    tell: Tell = lambda line: None,
    on_folder: Callable[[Path], None] = lambda folder: None,
) -> Compared:
    """Runs what is missing, and writes the tables.

    Args:
        study: what is compared.
        out: the comparison's folder, new or begun; None: ``runs/compare-<config>-N``.
        workers: runs at once; None: as many as the GPUs, or the cores, give ``launch.devices`` each.
        retry_failed: run failed runs again.
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
        runner = Runner(jobs, Ledger(place.runs), place, tell)
        if retry_failed:
            runner.ledger.forget_failed()
        left = remaining(jobs, runner.ledger.results)
        if left and not new:
            check_inputs(jobs)
        place.write(study, jobs)
        on_folder(place.path)
        if others := runner.runs_of_other_code():
            tell(f"{others} known runs are of other code: where it computes something else, begin a new folder (--out)")
        todo, stopped = runner.todo(), False
        if todo:
            runner.write_tables()
            what = f"settings: {', '.join(jobs.settings)}; methods: {', '.join([*jobs.methods, *jobs.bounds])}"
            tell(f"{what}; {left} run{'s' * (left != 1)} to do")
            cost = encode_features(open_jobs(jobs, runner.ledger.results), place.features)
            place.write(study, jobs, cost)
            tell(f"features: {cost['pictures']:,} pictures, {cost['encoded']:,} encoded ({duration(cost['seconds'])})")
            cuda = any(pick_device(job.config.run.device).type == "cuda" for job in todo)
            devices = max(job.config.launch.devices for job in todo)
            units = len(visible_gpus()) if cuda else num_cores()
            count = workers or min(max(1, units // devices), len(todo))
            with stop_on_signal() as asked:
                tell(f"{count} at once{f', each on {devices} ranks' if devices > 1 else ''}; a line when a run ends")
                stopped = runner.run(start_workers(place, count, devices, cuda), asked)
            if not stopped:
                shutil.rmtree(place.features, ignore_errors=True)
        return Compared(place.path, runner.write_tables(), stopped, runner.num_failed())


class Runner:
    """Gives jobs to workers and writes down their results.

    Args:
        jobs: of the comparison.
        ledger: the runs that have ended. What a kill left in finished ones is removed.
        place: its folder.
        tell: shows a line to the user.
    """

    def __init__(self, jobs: Jobs, ledger: Ledger, place: Place, tell: Tell) -> None:
        self.jobs, self.ledger, self.place, self.tell = jobs, ledger, place, tell
        self.commit = commit()
        self._seconds: list[float] = []
        for result in ledger.results.values():
            self._lighten(result)

    def run(self, workers: Sequence[Worker], asked: Callable[[], bool]) -> bool:
        """Until nothing is missing, or a signal ``asked`` to stop; returns whether one did.

        Raises:
            ComparisonEnded: a worker reports that further runs are pointless.
        """
        stopped = False
        try:
            while True:
                if asked() and not stopped:
                    stopped = True
                    for worker in workers:
                        worker.stop()
                if not stopped:
                    self._give(workers)
                busy = {worker: job for worker in workers if (job := worker.job)}
                if not busy:
                    return stopped
                wait([worker.future for worker in busy], 1.0, FIRST_COMPLETED)
                for worker, job in busy.items():
                    if worker.future.done():
                        result = worker.take(stopped or asked())
                        if result is not None:
                            self._write(job, result, time.perf_counter() - worker.began, len(workers))
                        elif not stopped:
                            stopped = True
                            for one in workers:
                                one.stop()
        finally:
            for worker in workers:
                worker.close()

    def _give(self, workers: Sequence[Worker]) -> None:
        """A job for every idle worker: of the setting and seed of its last one; else of one that no other worker has;
        else the next."""
        todo = self.todo({worker.job.id for worker in workers if worker.job})
        for worker in workers:
            if todo and worker.job is None:
                others = {one.group for one in workers if one.job}
                own = worker.group
                job = min(todo, key=lambda one: (one.group != own, one.group in others))
                todo.remove(job)
                worker.give(job)

    def todo(self, busy: Collection[str] = ()) -> list[Job]:
        """The runs that are known to be needed and have not ended, but for those of the ids ``busy``."""
        for job in wanted(self.jobs, self.ledger.results):
            self.ledger.claim(job)
        return [job for job in missing(self.jobs, self.ledger.results) if job.id not in busy]

    def num_failed(self) -> int:
        """How many of the wanted runs have failed."""
        return sum(not result.finished for result in self._known())

    def runs_of_other_code(self) -> int:
        """How many of the wanted runs that have ended are not of the code that runs."""
        return sum(result.record.get("commit") != self.commit for result in self._known())

    def _known(self) -> list[Result]:
        """The wanted runs that have ended."""
        ids = {job.id for job in wanted(self.jobs, self.ledger.results)}
        return [result for id_, result in self.ledger.results.items() if id_ in ids]

    def write_tables(self) -> dict[str, str]:
        """The tables by kind, written to the folder."""
        tables = make_tables(self.place.name, self.jobs, evaluate(self.jobs, self.ledger.results))
        self.place.write_tables({kind: text for kind, text in tables.items() if kind != "text"})
        return tables

    def _write(self, job: Job, result: Result, seconds: float, count: int) -> None:
        """Adds a result to runs.jsonl and the tables, and shows a line of it."""
        self.ledger.add(result._replace(record={**result.record, "commit": self.commit}))
        self._lighten(result)
        self._seconds.append(seconds)
        self.write_tables()
        final = job.cell.stage == FINAL
        how = f"failed: {result.record['error']}"
        if result.finished:
            loss = result.test["loss"] if final else result.record["val_loss"]
            how = f"{'test' if final else 'validation'} loss {loss:.4f}"
        left = remaining(self.jobs, self.ledger.results)
        done = len({one.id for one in wanted(self.jobs, self.ledger.results)} & self.ledger.results.keys())
        rest = left * sum(self._seconds) / len(self._seconds) / min(count, left or 1)
        took = f"({duration(seconds)}{f', about {duration(rest)} left' if left else ''})"
        stage = f"seed {job.cell.seed}" if final else "tuning"
        columns = [job.cell.setting, stage, job.cell.method, describe_options(job.cell.options), how, took]
        self.tell(f"{done:>{len(str(done + left))}}/{done + left}  " + "  ".join(filter(None, columns)))

    def _lighten(self, result: Result) -> None:
        """Removes the checkpoints of a finished run, and its projectors unless they are to stay."""
        folder = self.place.path / result.record["folder"]
        if result.finished:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if result.finished and not self.jobs.study.keep_projectors:
            shutil.rmtree(folder / "clients", ignore_errors=True)
            (folder / "projector.safetensors").unlink(missing_ok=True)
