"""Worker processes: what each has of the machine, and what follows when one dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcmp.compare.workers as workers
from fedcmp.compare import Place, Request, ask
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.workers import WorkerProcess

JOBS = Jobs(ask(None, (), Request(methods="fedavg", budget=1, bounds=False, seeds=3)))


class Probe(Place):
    """A folder whose runs report on their process; seed 2 kills it or is asked to stop, seed 3 takes long."""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(path)
        self.number = number

    @property
    def cells(self) -> Any:  # what a run of a worker asks for first
        return _Cells(self.number)

    @cells.setter
    def cells(self, _value: Path) -> None:
        pass


class _Cells:
    def __init__(self, number: int) -> None:
        self.number = number

    def __truediv__(self, job_id: str) -> Path:
        if "seed-2" in job_id:
            os.kill(os.getpid(), self.number)
        if "seed-3" in job_id:
            time.sleep(600)
        raise OSError(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {torch.get_num_threads()}")
