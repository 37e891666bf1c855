"""Whether ranks can meet on this machine: a few processes, started as ``launch.devices`` starts them, add up ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What launchers tell their ranks, and what makes a process without one wait for others."""


class Meeting(NamedTuple):
    """How it went; the reason, one line, is empty if they met."""

    met: bool
    seconds: float
    reason: str


def meet(backend: str = "gloo", num_ranks: int = 2, timeout: int = 60) -> Meeting:
    """Starts ranks that meet, add and part. No process is left behind.

    Args:
        backend: ``gloo``, or ``nccl`` with a GPU for each rank.
        num_ranks: how many.
        timeout: seconds for everything, imports among them.
    """
    t0 = time.perf_counter()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command += ["-m", "fedcmp.distributed.probe", backend, str(timeout)]
    own = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own)
    try:
        output, reason = process.communicate(timeout=timeout)[0], ""
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its ranks, which have an alarm, too
        output = process.communicate()[0]
        reason = f"they did not meet within {timeout} seconds"
    if process.returncode and not reason:
        reason = _reason(output)
    return Meeting(not reason, time.perf_counter() - t0, reason)


def _reason(output: str) -> str:
    """The line in which a rank says what went wrong, among all that a launcher prints.

    >>> _reason("[rank0]: Traceback\\n[rank0]: RuntimeError: no interface eth7\\nE1 torch/run.py failed (exitcode: 1)")
    'RuntimeError: no interface eth7'
    """
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line).strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*", line)]
    return next(iter([*errors, *reversed(lines)]), "the launcher printed nothing")


def _rank(backend: str, timeout: int) -> None:
    signal.alarm(timeout)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    ones = torch.ones(1, device=device)
    dist.all_reduce(ones)
    if int(ones) != dist.get_world_size():
        raise RuntimeError(f"{dist.get_world_size()} ones were added up to {float(ones)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(sys.argv[1], int(sys.argv[2]))
