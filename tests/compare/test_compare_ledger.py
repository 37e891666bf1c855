"""runs.jsonl after a kill, and who may work in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcmp.errors import RunFolderError
from fedcmp.compare import Request, ask
from fedcmp.compare.cells import Jobs
from fedcmp.compare.ledger import Ledger, failed, finished

JOBS = Jobs(ask(None, (), Request(methods="fedavg,same=fedavg", budget=1, bounds=False)))
FIRST, SECOND = JOBS.final("demo", "fedavg", {}, 1), JOBS.final("demo", "fedavg", {}, 2)
SAME = JOBS.final("demo", "same", {}, 1)


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ledger = Ledger(path)
    ledger.add(failed(FIRST, "one"))
    whole = path.read_bytes()
    ledger.add(failed(SECOND, "two"))
    for cut in (len(whole) + 1, len(path.read_bytes()) - 1):
        path.write_bytes(path.read_bytes()[:cut])
        again = Ledger(path)
        assert set(again.records) == {FIRST.id}
        assert path.read_bytes() == whole
        again.add(failed(SECOND, "two"))
    assert set(Ledger(path).records) == {FIRST.id, SECOND.id}


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"cell": 3}\n{"x"\n')
    with pytest.raises(RunFolderError, match=r"runs.jsonl, line 1: no record of a run"):
        Ledger(path)
    assert path.read_text() == '{"cell": 3}\n{"x"\n'


def test_the_last_line_of_a_question_is_the_one_that_was_asked_for_last(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ledger = Ledger(path)
    ledger.add(failed(FIRST, "one"))
    assert FIRST.id == SAME.id, "labels do not matter"
    for _ in range(2):
        ledger.claim(FIRST)
        ledger.claim(SAME)
        ledger.claim(SECOND)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["cell"]["method"] for line in lines] == ["fedavg", "same"]
    other = FIRST._replace(id="another-config")
    ledger.add(failed(other, "other"))
    ledger.claim(FIRST)
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["folder"] == f"cells/{FIRST.id}"


def test_a_later_try_counts_and_failed_runs_can_be_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs.jsonl")
    ledger.add(failed(FIRST, "one"))
    ledger.add({**failed(FIRST, ""), "status": "finished"})
    ledger.add(failed(SECOND, "two"))
    again = Ledger(ledger.path)
    assert again.records[FIRST.id]["status"] == "finished"
    again.forget_failed()
    assert set(again.records) == {FIRST.id}


@pytest.mark.parametrize(("loss", "test"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_loss_that_is_no_number_is_a_failure(tmp_path: Path, loss: float, test: float) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    summary = {"val/loss": {"end": loss}, "test": {"loss": test}}
    record = finished(FIRST, tmp_path, summary)
    assert (record["status"], record["val_loss"]) == ("failed", None)
    assert "no finite number" in record["error"]
    json.loads(json.dumps(record, allow_nan=False))
