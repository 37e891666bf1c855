"""The processes that run the jobs: this one, or several that it starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from fedcmp.compare.folder import failed
from fedcmp.compare.jobs import Job
from fedcmp.compare.run import Answer
from fedcmp.credentials import log_to_stderr
from fedcmp.lifetime import ASKING, end_with_parent

Run = Callable[[Job], Answer]
GOODBYE = 20.0
"""Seconds that a worker without a job has to end."""


class Here:
    """One worker: this process. A signal that asks to stop reaches the run by itself."""

    def __init__(self, run: Run) -> None:
        self._run, self._jobs = run, list[Job]()

    def idle(self) -> list[int]:
        """The workers without a job."""
        return [] if self._jobs else [0]

    def give(self, worker: int, job: Job) -> None:
        """A job for an idle worker."""
        self._jobs.append(job)

    def answers(self, timeout: float) -> list[tuple[int, Job, Answer]]:
        """The runs that have ended since; waits up to ``timeout`` seconds for the first."""
        jobs, self._jobs = self._jobs, []
        return [(0, job, self._run(job)) for job in jobs]

    def stop(self) -> None:
        """Asks runs to stop at the end of their round."""

    def close(self) -> None:
        """Ends the workers at once."""


@dataclass(frozen=True)
class Share:
    """What a worker may use of the machine."""

    threads: int
    gpu: str | None = None
    """The only entry of its CUDA_VISIBLE_DEVICES; None: unchanged."""


class Processes:
    """Several processes, started by ``spawn`` when first needed, so that each may own a GPU.

    A worker ends with this process, however this ends. It is no daemon in the sense of ``multiprocessing``, which may
    not have the processes that read pictures ahead. One that dies at its job (of memory, of a crash in native code)
    makes that job failed, and a new one takes its place.

    Args:
        make: called in each worker, gives what runs a job there.
        shares: one a worker.
    """

    def __init__(self, make: Callable[[], Run], shares: Sequence[Share]) -> None:
        self._make, self._shares = make, list(shares)
        self._workers: dict[int, tuple[Any, Connection]] = {}
        self._jobs: dict[int, Job] = {}
        self._stopping = False

    def idle(self) -> list[int]:
        return [worker for worker in range(len(self._shares)) if worker not in self._jobs]

    def give(self, worker: int, job: Job) -> None:
        if worker not in self._workers or not self._workers[worker][0].is_alive():
            self._workers[worker] = self._start(worker)
        self._workers[worker][1].send(job)
        self._jobs[worker] = job

    def answers(self, timeout: float) -> list[tuple[int, Job, Answer]]:
        busy = {self._workers[worker][1]: worker for worker in self._jobs}
        ready = [busy[connection] for connection in wait(list(busy), timeout)]  # type: ignore[index]
        return [(worker, job, self._answer(worker, job)) for worker in ready if (job := self._jobs.pop(worker))]

    def stop(self) -> None:
        self._stopping = True
        for worker in self._jobs:
            self._workers[worker][0].terminate()

    def close(self) -> None:
        workers, busy = self._workers, self._jobs
        self._workers, self._jobs = {}, {}
        try:
            for _, connection in workers.values():
                connection.close()
            for worker in workers.keys() - busy.keys():
                workers[worker][0].join(GOODBYE)
        finally:  # also after a second Ctrl-C: the interpreter would wait for the rest
            for process, _ in workers.values():
                process.kill()  # a run is made to survive it
        for process, _ in workers.values():
            process.join()

    def _start(self, worker: int) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        name, words = f"fedcmp-compare-{worker}", (theirs, self._make, self._shares[worker])
        process = context.Process(target=_serve, args=words, name=name)
        process.start()
        theirs.close()
        return process, ours

    def _answer(self, worker: int, job: Job) -> Answer:
        process, connection = self._workers[worker]
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
        code = process.exitcode
        if self._stopping or -code in ASKING:
            return Answer(None, stopped=True)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; is there enough memory? try fewer --workers" if code == -signal.SIGKILL else ""
        return Answer(failed(job, f"the process of this run was {how}{hint}"))


def _serve(connection: Connection, make: Callable[[], Run], share: Share) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    end_with_parent()
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), share.threads)))
    log_to_stderr()
    try:
        run = make()
    except Exception as error:
        connection.send(Answer(None, ended=f"a worker process could not start: {error}; try --workers 1"))
        return
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run(job))
