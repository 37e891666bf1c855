"""Versions, GPUs and threads, each with its fault."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from fedcmp.doctor.hardware import Cuda, Gpu, devices, read_cuda, threads
from fedcmp.doctor.software import packages, python

HALF = Gpu("H", 30 * 10**9, 80 * 10**9)
FREE = Gpu("H", 79 * 10**9, 80 * 10**9)


def test_what_is_installed_here_is_in_range() -> None:
    assert python().status == "ok"
    (line,) = packages()
    assert line.status == "ok"
    assert f"torch {metadata.version('torch')}" in line.what


def test_an_old_python_is_fatal() -> None:
    finding = python("3.8.1")
    assert finding.status == "fatal"
    assert "Python 3.8.1, but fedcmp needs >=3.10" in finding.what


def test_wrong_and_missing_packages_have_a_line_each() -> None:
    def version_of(name: str) -> str:
        if name == "safetensors":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else metadata.version(name)

    found = {finding.what: finding for finding in packages(version_of)}
    assert len(found) == 2
    assert found["torch is 1.0, outside >=2.7"].status == "warn"
    assert found["safetensors is missing; fedcmp needs safetensors>=0.4.5"].status == "fatal"
    assert all("pip install" in finding.mend for finding in found.values())


def test_a_checkout_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert (python().status, packages()) == ("warn", [])
    assert "fedcmp is not installed" in python().what


@pytest.mark.parametrize(("cuda", "wanted", "status", "said"), [
    (Cuda(None, None, (), ""), "auto", "ok", "a CPU build, no GPU"),
    (Cuda("13.0", None, (), ""), "auto", "ok", "CUDA 13.0, no GPU"),
    (Cuda(None, None, (), ""), "cuda", "fatal", "run.device is cuda, but: cpu"),
    (Cuda(None, "580.1", (), ""), "auto", "warn", "is a CPU build, but this machine has an NVIDIA driver (580.1)"),
    (Cuda(None, "580.1", (), ""), "cuda", "fatal", "is a CPU build"),
    (Cuda("13.0", "470.2", (), "driver too old"), "auto", "warn", "cannot use the driver 470.2: driver too old"),
    (Cuda("13.0", "470.2", (), ""), "cuda", "fatal", "cannot use the driver 470.2: no GPU"),
    (Cuda("13.0", "580.1", (FREE,), ""), "auto", "ok", "cuda:0 H, 79.0 of 80.0 GB free, CUDA 13.0, driver 580.1"),
    (Cuda("13.0", None, (HALF,), ""), "cuda", "warn", "30.0 of 80.0 GB free"),
])  # fmt: skip
def test_gpus_builds_and_drivers(cuda: Cuda, wanted: str, status: str, said: str) -> None:
    (finding,) = devices(cuda, wanted)
    assert finding.status == status
    assert said in finding.what
    assert bool(finding.mend) == (status != "ok")


def test_what_torch_remarks_is_passed_on() -> None:
    found = devices(Cuda("13.0", "580.1", (FREE, FREE), "this GPU is too old"), "auto")
    assert [finding.status for finding in found] == ["ok", "ok", "warn"]
    assert "too old" in found[2].what


def test_this_machine_can_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_cuda().build == torch.version.cuda
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H")

    def busy(number: int) -> None:
        raise RuntimeError("all CUDA-capable devices are busy\nmore")

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    assert read_cuda()[2:] == ((), "cuda:0: all CUDA-capable devices are busy")


@pytest.mark.parametrize(("text", "ranks", "status", "said"), [
    (None, 1, "ok", "4 cores; 1 rank with 4 threads each (OMP_NUM_THREADS is not set)"),
    (None, 4, "ok", "4 ranks with 1 thread each"),
    ("2", 2, "ok", "4 cores; 2 ranks with 2 threads each"),
    ("4", 2, "warn", "more threads than cores"),
    (None, 5, "warn", "5 ranks with 1 thread each"),
    ("many", 1, "warn", "'many', which is no number of threads"),
    ("0", 1, "warn", "no number of threads"),
])  # fmt: skip
def test_threads_and_cores(text: str | None, ranks: int, status: str, said: str) -> None:
    finding = threads({} if text is None else {"OMP_NUM_THREADS": text}, ranks, cores=4)
    assert finding.status == status
    assert said in finding.what
    mend = f"export OMP_NUM_THREADS={4 // ranks}" if ranks <= 4 else "lower launch.devices to 4"
    assert status == "ok" or finding.mend == mend
