"""runs.jsonl after a kill, and the lines that count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcmp.compare import Request, ask
from fedcmp.compare.folder import Ledger, failed, finished
from fedcmp.compare.jobs import Jobs
from fedcmp.errors import RunFolderError

JOBS = Jobs(ask(None, (), Request(methods="fedavg,same=fedavg", budget=1, bounds=False)))
FIRST, SECOND = JOBS.final("demo", "fedavg", {}, 1), JOBS.final("demo", "fedavg", {}, 2)
SAME = JOBS.final("demo", "same", {}, 1)


def test_a_torn_last_line_is_cut_off_and_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ledger = Ledger(path)
    ledger.add(failed(FIRST, "one"))
    whole = path.read_bytes()
    ledger.add(failed(SECOND, "two"))
    for cut in (len(whole) + 1, len(path.read_bytes()) - 1):
        path.write_bytes(path.read_bytes()[:cut])
        again = Ledger(path)
        assert set(again.results) == {FIRST.id}
        assert path.read_bytes() == whole
        again.add(failed(SECOND, "two"))
    assert set(Ledger(path).results) == {FIRST.id, SECOND.id}
    path.write_text('{"cell": 3}\n{"x"\n{')
    with pytest.raises(RunFolderError, match=r"runs.jsonl, line 1"):
        Ledger(path)
    assert path.read_text() == '{"cell": 3}\n{"x"\n{'


def test_the_last_line_of_a_cell_is_the_one_that_was_asked_for_last(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs.jsonl")
    ledger.add(failed(FIRST, "one"))
    assert FIRST.id == SAME.id, "labels do not matter"
    for job in (FIRST, SAME, SECOND, FIRST, SAME):
        ledger.claim(job)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line["cell"]["method"] for line in lines] == ["fedavg", "same"]
    ledger.add(failed(FIRST._replace(id="another-config"), "other"))
    ledger.claim(FIRST)
    assert json.loads(ledger.path.read_text().splitlines()[-1])["folder"] == f"cells/{FIRST.id}"
    good = failed(FIRST, "")
    ledger.add(good._replace(record={**good.record, "status": "finished"}))
    ledger.add(failed(SECOND, "two"))
    again = Ledger(ledger.path)
    assert again.results[FIRST.id].finished, "the later try counts"
    again.forget_failed()
    assert set(again.results) == {FIRST.id}


@pytest.mark.parametrize(("loss", "test"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_loss_that_is_no_number_is_a_failure(tmp_path: Path, loss: float, test: float) -> None:
    result = finished(FIRST, tmp_path, {"val/loss": {"end": loss}, "test": {"loss": test}})
    assert (result.finished, result.record["val_loss"]) == (False, None)
    json.loads(json.dumps(result.record, allow_nan=False))
