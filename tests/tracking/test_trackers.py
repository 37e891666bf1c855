"""Records on disk before the next round, W&B offline with one step a round, bars that know when to be quiet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import JsonlTracker, Trackers
from fedcmp.tracking.wandb import WandbConfig, WandbTracker


def test_each_record_is_a_line_at_once(tmp_path: Path) -> None:
    tracker = Trackers(JsonlTracker(tmp_path / "m.jsonl"))
    tracker.log({"round": 0, "loss": 1.5})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"round": 0, "loss": 1.5}
    tracker.log({"round": 1, "loss": float("nan")})
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[1]) == {"round": 1, "loss": None}
    tracker.close({})
    with pytest.raises(RunFolderError, match=r"cannot write .*m\.jsonl"):
        JsonlTracker(tmp_path / "none" / "m.jsonl").log({"round": 0})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_wandb_offline_keeps_one_record_a_round(tmp_path: Path) -> None:
    tracker = WandbTracker(WandbConfig(), "name", tmp_path, {"run": {"seed": 3}})
    for number in range(3):
        tracker.log({"round": number, "samples_seen": number * 8, "val/loss": 2.0 - number, "note": "text"})
    tracker.log({"round": 3, "rho/histogram": [0.25, 0.75], "cosines": [0.1, 0.2]})
    run = tracker.logger.experiment
    assert run.step == 4
    assert run.summary["rho/histogram"]["bins"] == [0.0, 0.5, 1.0]
    assert run.config["run"]["seed"] == 3
    picture = tmp_path / "captions.png"
    Image.new("RGB", (4, 4)).save(picture)
    tracker.close({"samples_seen": 16, "seconds": {}}, [picture])
    (first,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    again = WandbTracker(WandbConfig(), "name", tmp_path, {})
    again.log({"round": 4, "val/loss": 0.5})
    again.close({})
    assert {path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")} == {first.name}, "one W&B run"


def test_unknown_modes_are_named() -> None:
    with pytest.raises(ConfigError, match=r'wandb\.mode.*did you mean "online"'):
        WandbConfig(mode="on-line").validate()


def test_bars_are_quiet_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().bar(3, "rounds") as bar:
        bar(1, {"loss": 1.0})
    assert capsys.readouterr().err == ""
    with Progress(enabled=True).bar(3, "rounds", done=1) as bar:
        bar(2, {"loss": 1.0, "other": None})
    assert "rounds" in capsys.readouterr().err
