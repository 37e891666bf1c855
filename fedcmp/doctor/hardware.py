"""GPUs, what torch can do with them, and cores."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch

from fedcmp.doctor.finding import Finding, fatal, ok, warn


class Gpu(NamedTuple):
    """One GPU; bytes."""

    name: str
    free: int
    total: int


class Cuda(NamedTuple):
    """What torch and the driver say about each other."""

    build: str | None
    """The CUDA version that torch was built for; None: a CPU build."""
    driver: str | None
    """The NVIDIA driver's version; None: there is none."""
    gpus: tuple[Gpu, ...]
    """Those that torch can use."""
    said: str
    """What torch remarked on the way."""


def read_cuda() -> Cuda:
    """Looks at this machine."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus, remarks = [], []
        try:
            for number in range(count):
                gpus.append(Gpu(torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)))
        except RuntimeError as error:  # for example a GPU that lets one process in, and has one
            remarks.append(f"cuda:{len(gpus)}: {error}")
    remarks += [str(one.message) for one in told]
    said = remarks[0].splitlines()[0] if remarks else ""
    return Cuda(torch.version.cuda, _driver(), tuple(gpus), said)


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def devices(cuda: Cuda, wanted: str) -> list[Finding]:
    """Whether torch can use the GPUs that there are.

    Args:
        cuda: this machine.
        wanted: ``run.device``.
    """
    if cuda.gpus:
        found = [_gpu(number, gpu, cuda) for number, gpu in enumerate(cuda.gpus)]
        remark = [warn(f"torch says: {cuda.said}", "install a build of torch that knows these GPUs")]
        return [*found, *(remark if cuda.said else [])]
    bad = fatal if wanted == "cuda" else warn
    if cuda.driver and cuda.build is None:
        what = f"torch {torch.__version__} is a CPU build, but this machine has an NVIDIA driver ({cuda.driver})"
        return [bad(what, "install torch's CUDA build to use the GPU (pytorch.org, Get Started)")]
    if cuda.driver:
        what = f"torch is built for CUDA {cuda.build} and cannot use the driver {cuda.driver}: {cuda.said or 'no GPU'}"
        return [bad(what, "update the driver, install a torch for an older CUDA, or see CUDA_VISIBLE_DEVICES")]
    what = f"cpu; torch {torch.__version__}, {'a CPU build' if cuda.build is None else f'CUDA {cuda.build}'}, no GPU"
    if wanted == "cuda":
        return [fatal(f"run.device is cuda, but: {what}", "use run.device=auto, or a machine with a GPU")]
    return [ok(what)]


def _gpu(number: int, gpu: Gpu, cuda: Cuda) -> Finding:
    what = f"cuda:{number} {gpu.name}, {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free, CUDA {cuda.build}"
    what += f", driver {cuda.driver}" if cuda.driver else ""
    if gpu.free < gpu.total / 2:
        return warn(what, "somebody uses it (nvidia-smi tells who): take another, or wait")
    return ok(what)


def threads(environment: Mapping[str, str], ranks: int, cores: int | None = None) -> Finding:
    """Whether ranks share the cores without contending for them, which is many times slower.

    Args:
        environment: for OMP_NUM_THREADS.
        ranks: processes that a run starts on this machine.
        cores: those that this process may use; None: ask.
    """
    cores = cores or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    share, text = max(1, cores // ranks), environment.get("OMP_NUM_THREADS")
    if text is not None and not (text.isdecimal() and int(text) > 0):
        return warn(f"OMP_NUM_THREADS is {text!r}, which is no number of threads", f"export OMP_NUM_THREADS={share}")
    # torchrun gives each of several ranks one thread where nobody said otherwise
    each = int(text) if text else 1 if ranks > 1 else cores
    what = f"{cores} cores; {ranks} rank{'s' * (ranks > 1)} with {each} thread{'s' * (each > 1)} each"
    what += "" if text else " (OMP_NUM_THREADS is not set)"
    if each * ranks > cores:
        mend = f"export OMP_NUM_THREADS={share}" if each > share else f"lower launch.devices to {cores}"
        return warn(f"{what}: more threads than cores", mend)
    return ok(what)
