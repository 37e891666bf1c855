"""Worker processes: what reaches them, what becomes of their deaths."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from fedcmp.compare import Request, ask
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.run import Answer
from fedcmp.compare.workers import Processes, Share

JOBS = Jobs(ask(None, (), Request(methods="fedavg", budget=1, bounds=False, seeds=3)))


def job(seed: int) -> Job:
    return JOBS.final("demo", "fedavg", {}, seed)


def make(kind: str) -> Callable[[Job], Answer]:
    """Runs in the worker."""
    if kind == "broken":
        raise RuntimeError("this machine cannot")

    def run(given: Job) -> Answer:
        if given.cell.seed == 2 and kind == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if given.cell.seed == 2 and kind == "signals":
            os.kill(os.getpid(), signal.SIGUSR1)
        if given.cell.seed == 3:
            time.sleep(600)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Answer({"pid": os.getpid(), "gpu": visible, "threads": torch.get_num_threads(), "id": given.id})

    return run


@pytest.fixture
def crew() -> Iterator[Callable[[str, int], Processes]]:
    made: list[Processes] = []

    def start(kind: str, count: int = 1) -> Processes:
        made.append(Processes(partial(make, kind), [Share(1, str(number)) for number in range(count)]))
        return made[-1]

    yield start
    for one in made:
        one.close()


def finish(workers: Processes, seconds: float = 120) -> list[tuple[int, Job, Answer]]:
    found, until = [], time.monotonic() + seconds
    while not found and time.monotonic() < until:
        found = workers.answers(1.0)
    return found


@pytest.mark.slow
def test_a_dead_worker_fails_its_job_and_another_takes_its_place(crew: Callable[..., Processes]) -> None:
    workers = crew("kills")
    assert workers.idle() == [0]
    workers.give(0, job(1))
    assert workers.idle() == []
    ((worker, done, answer),) = finish(workers)
    assert (worker, done.id, answer.result["id"]) == (0, job(1).id, job(1).id)
    assert (answer.result["gpu"], answer.result["threads"]) == ("0", 1)
    workers.give(0, job(2))
    ((_, _, dead),) = finish(workers)
    assert dead.result.record["status"] == "failed"
    assert "SIGKILL" in dead.result.record["error"]
    workers.give(0, job(1))
    ((_, _, again),) = finish(workers)
    assert again.result["pid"] != answer.result["pid"]
    os.kill(again.result["pid"], signal.SIGKILL)  # while it has nothing to do
    workers._workers[0][0].join()
    workers.give(0, job(1))
    ((_, _, again),) = finish(workers)
    assert again.result["id"] == job(1).id
    workers.give(0, job(3))
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(again.result["pid"], 0)


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_comparison(crew: Callable[..., Processes]) -> None:
    workers = crew("broken")
    workers.give(0, job(1))
    ((_, _, answer),) = finish(workers)
    assert answer.result is None
    assert "this machine cannot" in answer.ended


def test_a_signal_that_asks_to_stop_is_no_failure(crew: Callable[..., Processes]) -> None:
    workers = crew("signals")
    workers.give(0, job(2))
    ((_, _, answer),) = finish(workers)
    assert answer == Answer(None, stopped=True)


@pytest.mark.slow
def test_who_is_asked_twice_to_end_leaves_no_worker(
    crew: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = crew("plain", 2)
    workers.give(0, job(1))
    ((_, _, answer),) = finish(workers)
    workers.give(1, job(3))
    processes = [process for process, _ in workers._workers.values()]

    def again(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes[0], "join", again)
    with pytest.raises(KeyboardInterrupt):
        workers.close()
    monkeypatch.undo()
    for process in processes:
        process.join(20)
        assert not process.is_alive()
    assert answer.result["pid"] == processes[0].pid
