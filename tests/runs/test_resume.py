"""A run that was stopped or killed goes on to the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from full_disk import room
from small import SMALL

import fedcmp.federation.loop as loop
import fedcmp.federation.sampling as sampling
from fedcmp.config import Config, load_config
from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.runs.train import reopen, resume, train
from fedcmp.tracking.tracker import JsonlTracker

FOUR = ("federation.rounds=4", "federation.local_steps=1", "federation.batch_size=2", "federation.clients_per_round=5")
WORDS = [*SMALL, *FOUR, "evaluation.captions=0", "evaluation.examples=0"]


def small(folder: Path, *overrides: str) -> Config:
    return load_config(None, [*WORDS, f"run.dir={folder}", *overrides])


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that nothing interrupted, by their overrides."""

    @cache
    def make(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        train(small(folder, *overrides))
        return folder

    return make


@pytest.fixture
def whole(wholes: Callable[..., Path]) -> Path:
    return wholes()


def check(part: Path, whole: Path) -> None:
    """Goes on with a run, to the bits and the records of another."""
    done, other = resume(part), json.loads((whole / "summary.json").read_text())
    assert [done[key] for key in ("projector_sha256", "val/loss")] == [other["projector_sha256"], other["val/loss"]]
    assert records(part) == records(whole)


def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, *overrides: str) -> Path:
    """The folder of a run that was asked to stop after some rounds."""
    with monkeypatch.context() as patch:
        interrupt(patch, after, "asked")
        train(small(tmp_path / "part", *overrides))
    return tmp_path / "part"


def corrupt(folder: Path, number: int) -> None:
    """One checkpoint loses its second half, as a disk may."""
    (path,) = (folder / "checkpoints").glob(f"round-{number:04d}-*.pt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def records(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in one.items() if not key.startswith("seconds/")} for one in found]


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, how: str) -> None:
    """Signals, or dies, when round ``after`` has been logged."""
    whole = loop.run_round

    def round_then_interrupt(federation, state, plan):
        if how == "killed" and plan.round == after:
            raise KeyboardInterrupt
        result = whole(federation, state, plan)
        if how == "asked" and plan.round + 1 == after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return result

    monkeypatch.setattr(loop, "run_round", round_then_interrupt)


@pytest.mark.parametrize("method", ["fedcmp", "fedcmp guarded", "scaffold", "fedadam"])
@pytest.mark.parametrize("how", ["asked", "killed"])
def test_going_on_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wholes: Callable[..., Path], method: str, how: str
) -> None:
    name, _, guarded = method.partition(" ")
    options = (f"aggregator={name}", f"aggregator.guard={bool(guarded)}", "federation.keep_local_state=true")
    part, whole = tmp_path / "part", wholes(*options)
    with monkeypatch.context() as patch, nullcontext() if how == "asked" else pytest.raises(KeyboardInterrupt):
        interrupt(patch, 2, how)
        summary = train(small(part, *options))
        assert (summary["exit"], summary["rounds"]) == ("stopped", 2)
        assert {"total", "prepare", "train", "aggregate", "evaluate", "save"} == set(summary["seconds"])
        speed = summary["samples_seen"] / summary["seconds"]["train"]
        assert summary["samples_per_second"] == pytest.approx(speed, rel=0.05), "both are rounded"
    if how == "killed":
        with (part / "metrics.jsonl").open("a") as file:
            file.write('{"round": 3, "val/lo')  # it died while it wrote
    check(part, whole)
    check(part, whole)  # a finished run is left alone


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 0, "killed")
        with pytest.raises(KeyboardInterrupt):
            train(small(tmp_path / "part"))
    check(tmp_path / "part", whole)


@pytest.mark.parametrize(("number", "how"), [(1, "killed"), (3, "killed"), (1, "full disk")])
def test_a_run_that_ends_between_a_checkpoint_and_its_record_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, how: str, whole: Path
) -> None:
    """Also where one checkpoint is kept, and where it was the first."""
    log = JsonlTracker.log

    def ends(self: JsonlTracker, record: dict) -> None:
        if record["round"] == number and how == "killed":
            raise KeyboardInterrupt
        with room(self.path.stat().st_size + 20) if record["round"] == number else nullcontext():
            log(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(JsonlTracker, "log", ends)
        with pytest.raises(KeyboardInterrupt if how == "killed" else RunFolderError):
            train(small(tmp_path / "part", "federation.keep_checkpoints=1"))
    check(tmp_path / "part", whole)


def test_a_run_whose_checkpoints_are_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that purges old files would else cost the whole run, without a word."""
    part = stopped(tmp_path, monkeypatch, 3)
    before = (part / "metrics.jsonl").read_bytes()
    for path in (part / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="checkpoints"):
        resume(part)
    assert (part / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("left", ["half a checkpoint", "a checkpoint without a record"])
def test_what_a_kill_may_leave_costs_a_round(tmp_path, monkeypatch, caplog, left: str, whole: Path) -> None:
    part = stopped(tmp_path, monkeypatch, 3)
    rows = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    rows[2]["seconds/train"] += 1000
    if left == "half a checkpoint":
        corrupt(part, 3)
    else:
        rows = rows[:-1]
    (part / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(part, whole)
    assert "round 2" in caplog.text
    seconds = resume(part)["seconds"]
    assert 1000 < seconds["train"] < sum(seconds.values()) - seconds["total"] <= seconds["total"], "of the whole run"


def test_a_run_goes_on_with_the_file_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, file = stopped(tmp_path, monkeypatch, 1, "federation.rounds=3"), tmp_path / "mine.yaml"
    file.write_text("federation: {rounds: 3}")
    others = [word for word in WORDS if not word.startswith("federation.rounds")]
    assert reopen(part, others, file) == load_config(part / "config.yaml", ["run.dir=null"])
    with pytest.raises(CheckpointError, match=r"federation\.rounds: 3 -> 4"):
        reopen(part, WORDS, file)


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = stopped(tmp_path, monkeypatch, 1) / "split.json"
    kept = split.read_text()
    was = json.loads(kept)
    for other in ({"hash": "another"}, {"records": {**was["records"], "val": "another"}}, {"plan": "another"}, None):
        split.write_text(json.dumps({**was, **other}) if other else "{")
        with pytest.raises(CheckpointError, match=r"split\.json"):
            resume(split.parent)
    split.unlink()
    resume(split.parent)
    assert split.read_text() == kept, "killed before it was written, it is written"


def test_the_plan_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = ["partition.scenario=quantity", "partition.quantity.min_samples=2", "federation.local_steps=0"]
    part = stopped(tmp_path, monkeypatch, 2, *uneven)
    whole = sampling.numpy_rng
    monkeypatch.setattr(sampling, "numpy_rng", lambda seed, *path: whole(seed + 1, *path))
    with pytest.raises(CheckpointError, match="plan"):
        resume(part)


def test_a_run_goes_on_with_other_slots_to_float32_accuracy(tmp_path, monkeypatch, whole: Path) -> None:
    done = resume(stopped(tmp_path, monkeypatch, 1), ["federation.slots=4"])
    assert done["exit"] == "finished"
    assert done["val/loss"]["end"] == pytest.approx(records(whole)[-1]["val/loss"], rel=1e-4)


def test_other_settings_are_refused_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, monkeypatch, 1)
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: 0\.005 -> 0\.1"):
        resume(tmp_path / "part", ["optimizer.lr=0.1"])
    with pytest.raises(CheckpointError, match=r"run\.seed: 0 -> 1"):
        resume(tmp_path / "part", ["run.seed=1", "run.device=cpu"])
    with pytest.raises(RunFolderError, match="none"):
        resume(tmp_path / "none")
    corrupt(tmp_path / "part", 1)
    with pytest.raises(CheckpointError, match="corrupted"):
        resume(tmp_path / "part")
