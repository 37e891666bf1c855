"""A sample of ``launch/chaos kills``."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Six trials of one and two ranks, each killed up to four times."""
    found = kills.campaign(6, [1, 2], ["fedcmp", "scaffold"], seed=3, folder=tmp_path)
    assert [one.problem for one in found] == [""] * 6
    assert sum(len(one.kills) for one in found) >= 4, "hardly any was killed"


def test_a_difference_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness compares what it says that it compares."""
    expected, seconds = kills.whole(tmp_path / "alone", 1, "fedavg")
    other = {**expected, "projector_sha256": "another"}
    monkeypatch.setattr(kills, "MOST_KILLS", 0)
    one = kills.trial(0, "clock", 1, "fedavg", tmp_path / "trial", other, seconds)
    assert one.problem == "other than uninterrupted: projector_sha256"
