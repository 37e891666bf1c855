"""Worker processes: what each has of the machine, and what follows when one dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from typing import Any

import pytest
import torch

from fedcmp.compare import ComparisonEnded, Request, ask
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.workers import WorkerProcess

JOBS = Jobs(ask(None, (), Request(methods="fedavg", budget=1, bounds=False, seeds=3)))


def make(number: int) -> Callable[[Job], Any]:
    """In the worker: seed 1 reports on the process, seed 2 gets a signal, or ends it all, seed 3 takes long."""

    def run(job: Job) -> Any:
        if job.cell.seed == 2 and number == 0:
            raise ComparisonEnded("no space left")
        if job.cell.seed == 2:
            os.kill(os.getpid(), number)
        if job.cell.seed > 1:
            time.sleep(600)
        return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads(), job.id

    return run


@pytest.fixture(params=["7", None], ids=["spawned", "forked"])
def started(request: pytest.FixtureRequest) -> Iterator[Callable[[int], WorkerProcess]]:
    made: list[WorkerProcess] = []

    def start(number: int) -> WorkerProcess:
        made.append(WorkerProcess(partial(make, number), 1, request.param))
        return made[-1]

    yield start
    for one in made:
        one.close()


def answer(worker: WorkerProcess, seed: int, stopping: bool = False) -> Any:
    worker.give(JOBS.final("demo", "fedavg", {}, seed))
    assert wait([worker.future], 300).done
    return worker.take(stopping)


@pytest.mark.slow
def test_a_dead_worker_fails_its_job_and_another_takes_its_place(
    started: Callable[[int], WorkerProcess], request: pytest.FixtureRequest
) -> None:
    worker = started(signal.SIGKILL)
    pid, gpu, threads, job = answer(worker, 1)
    own = "7" if "spawned" in request.node.name else os.environ.get("CUDA_VISIBLE_DEVICES")
    assert (gpu, threads, job) == (own, 1, JOBS.final("demo", "fedavg", {}, 1).id)
    dead = answer(worker, 2).record
    assert (dead["status"], "killed" in dead["error"]) == ("failed", True)
    assert answer(worker, 1)[0] != pid
    assert answer(worker, 2, stopping=True) is None, "it was on its way to stop"
    # a signal that asks to stop is no failure, and a full disk no result
    assert answer(started(signal.SIGUSR1), 2) is None
    with pytest.raises(ComparisonEnded, match="no space left"):
        answer(started(0), 2)


@pytest.mark.slow
def test_a_worker_that_is_closed_or_stopped_at_its_job_ends(started: Callable[[int], WorkerProcess]) -> None:
    worker = started(0)
    pid = answer(worker, 1)[0]
    worker.give(JOBS.final("demo", "fedavg", {}, 3))
    worker.stop()
    assert wait([worker.future], 300).done
    assert worker.take(stopping=True) is None
    worker.give(JOBS.final("demo", "fedavg", {}, 3))
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.future.exception() is not None
