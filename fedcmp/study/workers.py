"""Who runs the jobs: this process, or several that it starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from fedcmp.credentials import log_to_stderr
from fedcmp.lifetime import ASKING, end_with_parent
from fedcmp.study.cells import Job
from fedcmp.study.execute import Answer
from fedcmp.study.ledger import failed

Run = Callable[[Job], Answer]
GOODBYE = 20.0
"""Seconds that a worker with nothing to do has to end."""


class Workers(Protocol):
    """Takes jobs, one at a time each, and gives answers."""

    def idle(self) -> list[int]:
        """The workers that have nothing to do."""
        ...

    def give(self, worker: int, job: Job) -> None:
        """A job for an idle worker."""
        ...

    def answers(self, timeout: float) -> list[tuple[int, Job, Answer]]:
        """What has ended since; waits up to ``timeout`` seconds for the first."""
        ...

    def stop(self) -> None:
        """Asks runs to stop at the end of their round."""
        ...

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        ...


class Here:
    """One worker: this process. A signal that asks to stop reaches the run by itself."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._job: Job | None = None

    def idle(self) -> list[int]:
        return [0] if self._job is None else []

    def give(self, worker: int, job: Job) -> None:
        self._job = job

    def answers(self, timeout: float) -> list[tuple[int, Job, Answer]]:
        job, self._job = self._job, None
        return [] if job is None else [(0, job, self._run(job))]

    def stop(self) -> None:
        """The run has heard."""

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Share:
    """What a worker may use of the machine."""

    threads: int
    gpu: str | None = None
    """Its only entry of CUDA_VISIBLE_DEVICES; None: as it is."""


class Processes:
    """Several processes, started by ``spawn`` when first needed, so that each may own a GPU.

    A worker ends with this process, however this ends: no run goes on that nobody waits for. It is no daemon in the
    sense of ``multiprocessing``, which may not have the processes that read pictures ahead. One that dies at its job
    (of memory, of a crash in native code) makes that job failed, and a new one takes its place.

    Args:
        make: called in each worker, gives what runs a job there.
        shares: one a worker.
    """

    def __init__(self, make: Callable[[], Run], shares: Sequence[Share]) -> None:
        self._make, self._shares = make, list(shares)
        self._workers: dict[int, tuple[Any, Connection]] = {}
        self._ready: set[int] = set()
        self._jobs: dict[int, Job] = {}
        self._stopping = False

    def idle(self) -> list[int]:
        return [worker for worker in range(len(self._shares)) if worker not in self._jobs]

    def give(self, worker: int, job: Job) -> None:
        if worker in self._workers and not self._workers[worker][0].is_alive():
            self._drop(worker)  # it died with nothing to do
        if worker not in self._workers:
            self._workers[worker] = self._start(worker)
        self._workers[worker][1].send(job)
        self._jobs[worker] = job

    def answers(self, timeout: float) -> list[tuple[int, Job, Answer]]:
        busy = {self._workers[worker][1]: worker for worker in self._jobs}
        found = [self._answer(busy[connection]) for connection in wait(list(busy), timeout)]  # type: ignore[index]
        return [one for one in found if one is not None]

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
                workers[worker][0].join(GOODBYE)  # with nothing to do it ends by itself, and tidies up
        finally:  # also where one asks twice: the interpreter would wait for who is left
            for process, _ in workers.values():
                process.kill()  # a run is made to survive it
        for process, _ in workers.values():
            process.join()

    def _start(self, worker: int) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._make, self._shares[worker]), name=f"fedcmp-compare-{worker}"
        )
        process.start()
        theirs.close()
        return process, ours

    def _answer(self, worker: int) -> tuple[int, Job, Answer] | None:
        process, connection = self._workers[worker]
        try:
            answer = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            answer = self._died(worker, process.exitcode)
            self._drop(worker)
        if answer is None:
            self._ready.add(worker)
            return None
        return worker, self._jobs.pop(worker), answer

    def _drop(self, worker: int) -> None:
        process, connection = self._workers.pop(worker)
        process.join()
        connection.close()
        self._ready.discard(worker)

    def _died(self, worker: int, code: int) -> Answer:
        if self._stopping or -code in ASKING:
            return Answer(None, stopped=True)
        how = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        if worker not in self._ready:
            return Answer(None, ended=f"a worker process could not start: {how}; see above, or try --workers 1")
        hint = "; is there enough memory? try fewer --workers" if code == -signal.SIGKILL else ""
        return Answer(failed(self._jobs[worker], f"the process of this run is gone: {how}{hint}"))


def _serve(connection: Connection, make: Callable[[], Run], share: Share) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    end_with_parent()
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), share.threads)))
    log_to_stderr()
    run = make()
    connection.send(None)  # ready
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run(job))
