"""What many tests share. The models are the embedded ones: real transformers classes, small enough for a test."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import small
import torch

import fedcmp.remember
from fedcmp.models.backbones import LanguageModel, ModelConfig, VisionTower, load_llm, load_tower

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "peers")]
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are for ``pytest -m gpu``: the other tests compare bits, and attention on CUDA does not give them twice."""
    chosen = config.getoption("markexpr") or ""
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # two contended threads are many times slower


@pytest.fixture(scope="session", autouse=True)
def _no_litter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("remembered")
        patch.setattr(fedcmp.remember, "cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    before, threads = dict(os.environ), {thread for thread in threading.enumerate() if not thread.daemon}
    yield
    changed = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}
    changed -= {"PYTEST_CURRENT_TEST"}
    if "wandb" not in request.node.name:  # wandb, torch and the Trainer keep notes there
        changed = {key for key in changed if not key.startswith(("PL_", "KMP_", "TORCHINDUCTOR_", "PYTORCH_NVML"))}
        assert not changed, f"the test changed the environment: {sorted(changed)}"
    left = {thread for thread in threading.enumerate() if not thread.daemon} - threads
    for thread in left:
        thread.join(timeout=5)  # a loader's pool may still be on its way out
    left = {thread for thread in left if thread.is_alive()}
    assert not left, f"the test left threads behind: {left}"


@pytest.fixture(scope="session")
def tower() -> VisionTower:
    return load_tower(ModelConfig())


@pytest.fixture(scope="session")
def llm() -> LanguageModel:
    return load_llm(ModelConfig())


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "pairs").is_dir():
        pytest.skip(f"needs the real pairs and weights in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo, with figures and captions; what a test adds to its folder, it removes."""
    from fedcmp.config import load_config
    from fedcmp.runs.train import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = [*small.SMALL, "evaluation.examples=2", "run.figures=true", f"run.dir={folder}"]
    train(load_config(None, words))
    return folder
