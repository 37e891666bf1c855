"""The study: its commands can be given, and its page shows what was measured."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import study

from fedcmp.cli import build_parser
from fedcmp.compare import Request, ask
from fedcmp.compare.folder import Ledger
from fedcmp.compare.jobs import Jobs
from fedcmp.compare.results import evaluate
from fedcmp.compare.schedule import remaining
from fedcmp.compare.tables import as_csv


def jobs_of(part: str) -> Jobs:
    """As its command asks for them."""
    said = build_parser().parse_args(study.words(part))
    numbers = {name: getattr(said, name) for name in ("seeds", "budget", "extra_seeds", "rivals")}
    words = {name: ",".join(getattr(said, name) or ()) or None for name in ("methods", "scenarios", "optimizers")}
    return Jobs(
        ask(Path(said.words[0]), said.words[1:], Request(**words, **numbers, bounds=False if said.no_bounds else None))
    )


@pytest.mark.parametrize("part", study.PARTS)
def test_what_is_kept_is_not_run_again_wherever_the_data_are(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setenv("FEDCMP_DATA", "/mnt/data of mine")
    jobs, results = jobs_of(part), Ledger(study.KEPT / part / "runs.jsonl").results
    assert results
    assert remaining(jobs, results) == 0
    if part == "attacks":  # the kept runs give the kept table
        kept = csv.DictReader(io.StringIO((study.KEPT / part / "table.csv").read_text(encoding="utf-8")))
        for made, old in zip(csv.DictReader(io.StringIO(as_csv(jobs, evaluate(jobs, results)))), kept, strict=True):
            assert {key: made[key] for key in old} == old


@pytest.mark.parametrize("page", study.PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_tables_that_were_measured(page: Path, tmp_path: Path) -> None:
    text, copy = page.read_text(encoding="utf-8"), tmp_path / page.name
    copy.write_text(text.replace("| 0.", "| 9."), encoding="utf-8")
    assert copy.read_text(encoding="utf-8") != text
    study.write(copy)
    assert copy.read_text(encoding="utf-8") == text, "say `python benchmarks/study.py --write`"
    parts = {part for part, _ in study.MARK.findall(text)}
    assert page != study.PAGES[0] or parts == {path.name for path in study.KEPT.iterdir()}, "nothing is left out"


def test_what_is_kept_names_no_folder_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in study.KEPT.glob("*/*.json*"):
        text = path.read_text(encoding="utf-8")
        assert not any(root in text for root in (": /", ': "/')), path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "KEPT", tmp_path / "kept")
    monkeypatch.setenv("FEDCMP_DATA", "/mnt/data of mine")
    asked = tmp_path / "runs/study/long-pairs/compare.json"
    asked.parent.mkdir(parents=True)
    asked.write_text('{"config": "root: /mnt/data of mine/pairs", "FEDCMP_DATA": "/mnt/data of mine"}')
    (asked.parent / "runs.jsonl").write_text("{}\n", encoding="utf-8")
    study.keep("long-pairs")
    kept = '{"config": "root: $FEDCMP_DATA/pairs", "FEDCMP_DATA": "$FEDCMP_DATA"}'
    assert (study.KEPT / "long-pairs/compare.json").read_text() == kept
