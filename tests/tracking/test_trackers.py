"""Records on disk before the next round, bars that know when to be quiet."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from full_disk import room

from fedcmp.errors import RunFolderError
from fedcmp.tracking import progress
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import JsonlTracker, Trackers, read_records


def test_a_record_is_on_the_disk_when_it_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only with the system: a power cut would take more records than checkpoints are kept."""
    synced: list[tuple[bool, bytes]] = []

    def look(number: int) -> None:
        synced.append((os.path.samestat(os.fstat(number), path.stat()), path.read_bytes()))

    path = tmp_path / "m.jsonl"
    tracker = Trackers(JsonlTracker(path))
    monkeypatch.setattr(os, "fsync", look)
    for loss in (1.5, float("nan")):
        tracker.log({"loss": loss})
    assert synced == [(True, b'{"loss": 1.5}\n'), (True, b'{"loss": 1.5}\n{"loss": null}\n')]
    assert tracker.records[0] == {"loss": 1.5}


def test_a_disk_that_takes_no_record_is_named_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    """Records are read up to the half line that a killed process leaves."""
    path = tmp_path / "m.jsonl"
    assert read_records(path) == []
    tracker = JsonlTracker(path)
    tracker.log({"round": 0})
    with room(20), pytest.raises(RunFolderError, match=r"cannot write .*m\.jsonl"):
        tracker.log({"round": 1, "loss": 0.5})
    assert path.read_text() == '{"round": 0}\n{"round'
    assert read_records(path) == [{"round": 0}]


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 4.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with Progress().bar(3, "round", done=1, pause=0) as bar:
        bar(1, {"train loss": 1.0, "validation loss": None})
        bar(1, {"train loss": 0.5, "validation loss": 0.25})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "round 2/3: 4.0 s, train loss 1.000, about 4 s left"
    assert second == "round 3/3: 8.0 s, train loss 0.500, validation loss 0.250"
    with Progress().bar(40, "pictures") as bar:
        for _ in range(40):
            bar(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pictures 0/40"
    assert 4 <= len(lines) <= 20, "one every ten seconds, not one a picture"
    with Progress(enabled=False).bar(2, "pictures", pause=0) as bar:
        bar(2)
    assert capsys.readouterr().err == ""
    with Progress(enabled=True).bar(3, "rounds", done=1) as bar:
        bar(2, {"loss": 1.0, "other": None})
    assert "rounds" in capsys.readouterr().err
