"""A sample of ``launch/chaos faults``."""

from __future__ import annotations

from pathlib import Path

import faults
import pytest

SMALL = (*(word for word in faults.DEMO if not word.startswith(("data.", "federation.rounds"))),)
SMALL += ("data.scenes_per_camera=16", "data.val_scenes_per_camera=2", "data.test_scenes_per_camera=2")
SMALL += ("federation.batch_size=4", "federation.rounds=3")
CASES = {case.name: case for case in faults.CASES}


@pytest.mark.slow
def test_every_fault_ends_as_is_promised(tmp_path: Path) -> None:
    """One of each kind; ``launch/chaos faults`` provokes them all."""
    names = ("raise", "retry", "nan", "too-few", "norm", "slow", "secure-dropout", "dead-rank")
    outcomes = faults.campaign([CASES[name] for name in names], tmp_path, SMALL)
    assert {one.case.name: one.problem for one in outcomes if one.problem} == {}
    by_name = {one.case.name: one for one in outcomes}
    assert by_name["nan"].counted == {"updates_left_out": 6, "left_out": {"not_finite": 6}}
    assert by_name["retry"].counted == {"clients_retried": 6}
    assert len(faults.table(outcomes).splitlines()) == 2 + len(outcomes)


def test_what_is_not_as_promised_would_be_seen() -> None:
    skip, rank, rows = CASES["skip"], CASES["dead-rank"], [{"client/0/weight": 0.5, "client/2/weight": 0.5}]
    good, lost = {"left_out": {"failed": 3}}, {"exit": "failed", "error": "RankLost: rank 1 was lost: it died"}
    assert faults.wrong(skip, {"exit": "finished"}, good, False, rows) == ""
    assert faults.wrong(rank, lost, {}, True, []) == ""
    assert faults.wrong(skip, {"exit": "failed", "error": "X"}, good, False, rows)
    assert faults.wrong(skip, {"exit": "finished"}, {"left_out": {"norm": 3}}, False, rows)
    assert faults.wrong(skip, {"exit": "finished"}, good, False, [{"client/0/weight": 0.5}])
    assert faults.wrong(rank, lost, {}, False, [])
    assert faults.wrong(rank, {"exit": "failed", "error": "timed out"}, {}, True, [])
