"""A sample of ``launch/chaos faults``."""

from __future__ import annotations

from pathlib import Path

import fault_cases
import faults
import pytest

SMALL = (*(word for word in faults.DEMO if not word.startswith("data.")), "data.scenes_per_camera=16")
SMALL += ("data.val_scenes_per_camera=2", "data.test_scenes_per_camera=2", "federation.batch_size=4")
CASES = {case.name: case for case in fault_cases.CASES}


def provoked(folder: Path, *names: str) -> list[faults.Outcome]:
    words = [word if not word.startswith("federation.rounds") else "federation.rounds=3" for word in SMALL]
    return faults.campaign([CASES[name] for name in names], folder, words)


@pytest.mark.slow
def test_clients_that_fail_are_named_left_out_and_counted(tmp_path: Path) -> None:
    outcomes = provoked(tmp_path, "raise", "retry", "nan", "too-few")
    assert [one.problem for one in outcomes] == [""] * 5
    by_name = {one.name: one for one in outcomes}
    assert by_name["nan"].counted == {"updates_left_out": 6, "left_out": {"not_finite": 6}}
    assert by_name["retry"].counted == {"clients_retried": 6}
    assert by_name["retry"].loss == by_name["clean"].loss


@pytest.mark.slow
def test_every_fault_ends_as_is_promised(tmp_path: Path) -> None:
    """One of each other kind; ``launch/chaos faults`` provokes them all."""
    outcomes = provoked(tmp_path, "norm", "slow", "secure-dropout", "dead-rank")
    assert {one.name: one.problem for one in outcomes if one.problem} == {}
    assert len(outcomes) == 5


def test_what_is_not_as_promised_would_be_seen() -> None:
    case, rows = CASES["skip"], [{"round": 1, "client/0/weight": 0.5, "client/2/weight": 0.5}]
    good = {"left_out": {"failed": 3}}
    assert faults.wrong(case, {"exit": "finished"}, good, None, rows) == ""
    assert faults.wrong(case, {"exit": "failed", "error": "X"}, good, None, rows) == "it failed: X"
    assert "it counted" in faults.wrong(case, {"exit": "finished"}, {"left_out": {"norm": 3}}, None, rows)
    assert "sum to 0.5" in faults.wrong(case, {"exit": "finished"}, good, None, [{**rows[0], "client/0/weight": 0.0}])
    rank = CASES["dead-rank"]
    lost = {"exit": "failed", "error": "RankLost: rank 1 was lost: it died"}
    assert faults.wrong(rank, lost, {}, True, []) == ""
    assert faults.wrong(rank, lost, {}, False, []) == "the projector is another one"
    assert "its error does not say" in faults.wrong(rank, {"exit": "failed", "error": "timed out"}, {}, True, [])
