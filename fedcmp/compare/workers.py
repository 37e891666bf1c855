"""Workers run the jobs of a comparison: this process, or several that it starts."""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import torch

from fedcmp.compare.folder import Place, failed, finished
from fedcmp.compare.jobs import Job, with_options
from fedcmp.config import Config, to_yaml
from fedcmp.credentials import log_to_stderr
from fedcmp.distributed.apart import run_ranks
from fedcmp.errors import CheckpointError, ConfigError, DataError, FedcmpError
from fedcmp.federation.folder import RunFolder
from fedcmp.lifetime import ASKING, end_with_parent
from fedcmp.report.comparison.results import BOUNDS, FINAL, Result
from fedcmp.report.files import read_object
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.parts import Kept
from fedcmp.runs.train import resume, train
from fedcmp.tracking.progress import Progress

log = logging.getLogger(__name__)
Run = Callable[[Job], Result | None]
IMPORTED = [__name__, "transformers.modeling_utils", "wandb", "matplotlib.figure"]
"""What takes seconds to import, once for all workers of a machine without GPUs."""


class ComparisonEnded(FedcmpError):
    """Something outside the runs, a full disk for example, ended the comparison; it can go on."""


class RanksFailed(FedcmpError):
    """A run of several processes failed in one of them."""


class JobRunner:
    """Runs jobs one after another; what they share (models, features) is kept between them.

    Args:
        place: the comparison's folder.
        alone: show the progress of each run; of several processes only a line for each run is shown.
    """

    def __init__(self, place: Place, alone: bool) -> None:
        self.place = place
        self.progress = Progress(least=60.0) if alone else Progress(enabled=False)
        self.kept = Kept()

    def __call__(self, job: Job) -> Result | None:
        """Runs the job; None: a signal asked it to stop, and it can go on. An error inside the run is a result.

        Raises:
            ComparisonEnded: the disk fails; further runs are pointless.
        """
        folder = self.place.cells / job.id
        try:
            summary = read_object(folder / "summary.json")
            if summary.get("exit") not in ("finished", "budget"):
                summary = self._run(job, folder)
            return finished(job, folder, summary) if summary["exit"] != "stopped" else None
        except OSError as error:
            raise ComparisonEnded(str(error)) from error
        except Exception as error:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            return failed(job, f"{type(error).__name__}: {error}")

    def _run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Begins the run, or goes on with it where a checkpoint of it is left."""
        config, begun = job.config, RunFolder(folder)
        ranks = config.launch.devices > 1
        if job.cell.method not in BOUNDS and begun.config.is_file() and begun.split.is_file():
            try:
                if ranks:
                    launch = [f"launch.{key}={value}" for key, value in dataclasses.asdict(config.launch).items()]
                    return self._on_ranks(config, folder, ["--resume", str(folder), *launch])
                return resume(folder, progress=self.progress, keep=self.kept)
            except (CheckpointError, ConfigError, DataError) as error:  # of data: they have moved since
                log.warning("%s begins again: its checkpoints cannot be used (%s)", folder, error)
        if folder.exists():
            shutil.rmtree(folder)
        begin = {"centralized": train_centralized, "local": train_local}.get(job.cell.method, train)
        group = config.wandb.group or self.place.name
        places: dict[str, Any] = {"run.dir": str(folder), "run.name": job.id, "wandb.group": group}
        places["wandb.tags"] = [*config.wandb.tags, job.cell.stage, job.cell.setting[:64]]
        places["run.figures"] = config.run.figures and job.cell.stage == FINAL
        places["data.cache_dir"] = config.data.cache_dir or str(self.place.features)
        config = with_options(config, places)
        if ranks:
            file = self.place.cells / f"{job.id}.yaml"
            begun.write_text(file, to_yaml(config))
            return self._on_ranks(config, folder, [str(file)])
        return begin(config, progress=self.progress, keep=self.kept)

    def _on_ranks(self, config: Config, folder: Path, words: list[str]) -> dict[str, Any]:
        """The summary of ``fedcmp train`` with these words; raises an error of theirs as one of here."""
        log, summary = self.place.cells / f"{folder.name}.log", folder / "summary.json"
        summary.unlink(missing_ok=True)
        code = run_ranks(config.launch, ["train", *words], log)
        said = read_object(summary)
        if said.get("exit") in ("finished", "budget", "stopped"):
            return said
        if code is None:
            return {"exit": "stopped"}
        lines = [line for line in log.read_text(errors="replace").splitlines() if "fedcmp: error: " in line]
        error = said.get("error") or " ".join(lines[-1:]) or f"exit code {code}"
        raise (ConfigError if code == 2 else RanksFailed)(f"{error} (all that its ranks said: {log})")


class Worker:
    """This process as a worker: ``give`` returns when the job has ended."""

    job: Job | None = None
    began = 0.0
    """Of its job or, if it has none, of its last one."""
    group = ("", 0)
    """Setting and seed of its last job, of which it keeps the features."""
    future: Future[Result | None]

    def __init__(self, run: Run) -> None:
        self.run = run

    def give(self, job: Job) -> None:
        """Begins a job."""
        self.job, self.began, self.group = job, time.perf_counter(), job.group
        self.future = self._submit(job)

    def take(self, stopping: bool) -> Result | None:
        """The result of the job, which has ended; None: it was asked to stop.

        Raises:
            ComparisonEnded: further runs are pointless.
        """
        job, self.job = self.job, None
        assert job is not None
        error = self.future.exception()
        if isinstance(error, SystemExit) or (stopping and isinstance(error, BrokenExecutor)):
            return None
        if isinstance(error, BrokenExecutor):
            return failed(job, "the process of this run was killed; is there enough memory? try fewer --workers")
        return self.future.result()

    def stop(self) -> None:
        """Asks the job to stop at the end of its round; a signal to this process reaches it by itself."""

    def close(self) -> None:
        """Ends the worker at once."""

    def _submit(self, job: Job) -> Future[Result | None]:
        future: Future[Result | None] = Future()
        future.set_result(self.run(job))
        return future


class WorkerProcess(Worker):
    """A process, started with its first job: forked from one that has imported everything, or by ``spawn`` for a GPU,
    which is lost to forks of a process in which some library has looked for it.

    It ends with this process, however this ends. One that dies makes its job failed; the next job starts another.

    Args:
        make: called in the process, gives what runs a job there.
        threads: how many it computes with.
        gpu: its CUDA_VISIBLE_DEVICES; None: unchanged.
    """

    def __init__(self, make: Callable[[], Run], threads: int, gpu: str | None) -> None:
        self.share = make, threads, gpu
        self._start()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        if self.job is not None:
            self._signal(signal.SIGKILL)  # a run is made to survive it
        self._pool.shutdown()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver" if self.share[-1] is None else "spawn")
        context.set_forkserver_preload(IMPORTED)
        if self.share[-1] is None:
            # a scheduler asks all processes of a job to stop, which would end the server of forks
            resource_tracker.ensure_running()  # else it is started with that server, and unblocks SIGTERM
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
            forkserver.ensure_running()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=self.share)
        self._pid: Future[int] | None = None

    def _submit(self, job: Job) -> Future[Result | None]:
        try:
            self._pid = self._pid or self._pool.submit(os.getpid)
            return self._pool.submit(_run, job)
        except BrokenExecutor:
            self._start()
            return self._submit(job)

    def _signal(self, number: int) -> None:
        def send(pid: Future[int]) -> None:
            with suppress(ProcessLookupError, BrokenExecutor):
                os.kill(pid.result(), number)

        if self._pid is not None:
            self._pid.add_done_callback(send)


_runs: list[Run] = []
"""What runs the jobs of this worker process."""


def _begin(make: Callable[[], Run], threads: int, gpu: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    for number in ASKING:
        signal.signal(number, lambda *_: sys.exit())  # between runs; a run has handlers of its own
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(min(torch.get_num_threads(), threads))
    log_to_stderr()
    _runs.append(make())


def _run(job: Job) -> Result | None:
    return _runs[0](job)


def start_workers(place: Place, count: int, devices: int, cuda: bool) -> list[Worker]:
    """``count`` workers of runs of ``devices`` ranks, the GPUs shared among them; one is this process."""
    if count == 1:
        return [Worker(JobRunner(place, alone=True))]
    make = functools.partial(JobRunner, place, alone=False)
    shares, threads = share_gpus(visible_gpus() if cuda else [], count, devices), max(1, num_cores() // count)
    return [WorkerProcess(make, threads, share) for share in shares]


def share_gpus(gpus: list[str], count: int, devices: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each of ``count`` workers; None: unchanged.

    >>> share_gpus(["0", "1", "2", "3"], 2, 2), share_gpus(["0"], 2, 2), share_gpus([], 1, 2)
    (['0,1', '2,3'], ['0', '0'], [None])
    """
    if not gpus:
        return [None] * count
    places = [range(number * devices, (number + 1) * devices) for number in range(count)]
    return [",".join(dict.fromkeys(gpus[place % len(gpus)] for place in some)) for some in places]


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def num_cores() -> int:
    """The cores that this process may use; not every SLURM binds a job to those that it has."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, int(os.environ.get("SLURM_CPUS_ON_NODE", here)))
