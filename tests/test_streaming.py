"""Runs whose training pictures are read ahead: the same training, with nothing kept of the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import torch

import fedcmp.data.stream
import fedcmp.runs.parts
from fedcmp.config import Config, load_config
from fedcmp.errors import DataError
from fedcmp.federation import loop
from fedcmp.federation.checkpoint import load_projector
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.data import read_data
from fedcmp.runs.train import resume, train

QUICK = ["evaluation.captions=0", "evaluation.examples=0", "evaluation.questions=0"]
EARLY = "aggregator.fuse.explore=1"
"""Without outcomes, for which a batch is read before its turn."""


def config(folder: Path, *overrides: str) -> Config:
    return load_config(None, [*small.SMALL, *QUICK, f"run.dir={folder}", *overrides])


def streamed(folder: Path, *overrides: str) -> Config:
    return config(folder, "data.stream=true", "data.workers=1", EARLY, *overrides)


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that were read on the spot, and not ahead."""
    found: list[int] = []
    read = fedcmp.data.stream._Pictures.__getitem__

    def noted(self: Any, positions: Any) -> Any:
        found.append(len(positions))  # a process of its own notes it in its own copy
        return read(self, positions)

    monkeypatch.setattr(fedcmp.data.stream._Pictures, "__getitem__", noted)
    return found


def test_reading_ahead_trains_the_same_and_keeps_no_picture(tmp_path, monkeypatch, read_here: list[int]) -> None:
    train(config(tmp_path / "kept", EARLY))
    seen: list[str] = []
    see = fedcmp.runs.parts.see
    monkeypatch.setattr(fedcmp.runs.parts, "see", lambda *args: seen.append(args[2][0].id) or see(*args))
    train(streamed(tmp_path / "run"))
    found, before = (load_projector(tmp_path / name / "projector.safetensors") for name in ("run", "kept"))
    for name, value in found.items():  # features of other batch shapes may differ in their last bit
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-5)
    assert not any("train" in name for name in seen)
    assert read_here == [], "every batch was announced"


def test_a_run_that_goes_on_reads_the_rest_ahead(tmp_path, monkeypatch, read_here: list[int]) -> None:
    whole = train(streamed(tmp_path / "whole"))
    run_round = loop.run_round

    def dies(federation: Any, state: Any, plan: Any) -> Any:
        if plan.round == 1:
            raise KeyboardInterrupt
        return run_round(federation, state, plan)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_round", dies)
        with pytest.raises(KeyboardInterrupt):
            train(streamed(tmp_path / "part"))
    assert resume(tmp_path / "part")["projector_sha256"] == whole["projector_sha256"]
    assert read_here == []


@pytest.mark.parametrize("how", ["skip", "retry"])
def test_a_client_that_fails_leaves_the_others_their_own_pictures(how: str, tmp_path, monkeypatch) -> None:
    read = fedcmp.data.stream._Pictures.__getitem__

    def settings(folder: Path, workers: int) -> Config:
        words = ["slots=1", "batch_size=2", "local_steps=2", f"on_client_error={how}"]
        words = [f"federation.{word}" for word in words]
        return config(folder, *words, "data.stream=true", f"data.workers={workers}")

    tasks = [task for plan in read_data(settings(tmp_path, 0)).plan.rounds for task in plan.tasks]
    bad = tasks[2].batches[0]  # another batch of its client is read ahead when it fails

    def broken(self: Any, positions: Any) -> Any:
        once = marker / "failed"
        if tuple(positions) == tuple(bad) and not (how == "retry" and once.exists()):
            once.touch()  # seen by every process
            raise DataError("cannot read a picture")
        return read(self, positions)

    monkeypatch.setattr(fedcmp.data.stream._Pictures, "__getitem__", broken)
    found = {}
    for workers in (0, 1):
        marker = tmp_path / f"{workers}"
        marker.mkdir()
        found[workers] = train(settings(marker / "run", workers))
        assert found[workers]["updates_left_out"] == (how == "skip")
        assert found[workers]["clients_retried"] == (how == "retry")
    assert found[0]["projector_sha256"] == found[1]["projector_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [train_centralized, train_local])
def test_training_without_rounds_reads_ahead_too(kind: Any, tmp_path: Path, read_here: list[int]) -> None:
    found = kind(streamed(tmp_path / "streamed"))
    assert read_here == []
    assert found["test"]["loss"] == pytest.approx(kind(config(tmp_path / "kept"))["test"]["loss"], rel=1e-4)
