"""The page of a comparison: what it shows, and what it does without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedcmp.errors import RunFolderError
from fedcmp.report.comparison.results import read_comparison
from fedcmp.report.page import write_report
from tests.report.conftest import LOSSES, line
from tests.report.looking import look


def test_whole(comparison: Path) -> None:
    page = look(write_report(comparison), figures=True)
    assert page.sections == [
        "Over all settings",
        "Setting: domain",
        "Setting: iid",
        "Tuning",
        "Interference and oscillation",
        "Cost",
        "Failed runs",
        "What was asked",
    ]
    figures = {"methods", "val-loss", "domains", "tuning", "landscape", "aggregator-energy-kept"}
    assert {f"figure-domain-{name}" for name in figures} <= set(page.ids)
    assert {"figure-cost-time", "figure-cost-traffic"} <= set(page.ids)
    for words in ("1.015 ± 0.007", "DataError: disk gone", "1, 1 failed", "fedcmp compare demo.yaml --seeds 2"):
        assert words in page.text
    assert "Traceback" not in page.text
    html = (comparison / "report" / "index.html").read_text()
    bold = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)[0] for row in html.split('<tr class="strong">')[1:]]
    assert bold == ["Fed-CMP", "Fed-CMP (reference)", "FedAvg"], "overall, domain, iid"


def test_pictures_that_do_not_matter_are_said_at_once(comparison: Path) -> None:
    table = json.loads((comparison / "table.json").read_text())
    for row in table["settings"]["iid"]:
        row |= {"ignores_pictures": row["method"] in ("krum", "local"), "recovered_image_use": 0.25}
    (comparison / "table.json").write_text(json.dumps(table))
    lines = [json.loads(one) for one in (comparison / "runs.jsonl").read_text().splitlines()]
    (comparison / "runs.jsonl").write_text("".join(json.dumps({**one, "status": "finished"}) + "\n" for one in lines))
    page = look(write_report(comparison, figures=False))
    assert [one["class"] for one in page.all("span") if "badge" in one.get("class", "")] == ["badge unused"]
    assert "iid: Krum." in page.text
    assert "25%" in page.text


def test_a_comparison_that_goes_on(comparison: Path, tmp_path: Path) -> None:
    (comparison / "table.json").unlink()
    for name in ("fedcmp", "krum"):
        (comparison / line("domain", name, 1, "final")["folder"] / "metrics.jsonl").unlink()
    page = look(write_report(comparison, figures=False))
    assert "p (Holm)" not in page.text
    assert "figure-domain-methods" in page.ids
    assert "Interference and oscillation" not in page.sections
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "compare.json").write_text('{"name": "new", "command": "fedcmp compare"}')
    assert look(write_report(begun, figures=False)).sections == ["What was asked"]
    (begun / "runs.jsonl").write_text(json.dumps(line("domain", "fedavg", 0, "tune")) + "\n")
    assert "Tuning" in look(write_report(begun, figures=False)).sections


def test_the_last_line_of_a_cell_counts(comparison: Path) -> None:
    again = line("iid", "krum", 1, "final")
    with (comparison / "runs.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
        file.write(json.dumps(line("old setting", "krum", 1, "final")) + "\n")
        file.write(json.dumps(again)[:50])
    found = read_comparison(comparison)
    assert all(one.finished for one in found.results)
    assert found.losses("iid", "krum") == [1.51, 1.52]
    assert found.settings == ["domain", "iid"], "what is no longer asked for is not shown"


def test_the_page_shows_the_seeds_of_the_table(comparison: Path) -> None:
    more = [line(setting, name, seed, "final") for setting in ("domain", "iid") for name in LOSSES for seed in (3, 4)]
    with (comparison / "runs.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in more)
    asked, table = (json.loads((comparison / f"{name}.json").read_text()) for name in ("compare", "table"))

    def seeds(name: str) -> set[int]:
        return {one.cell.seed for one in read_comparison(comparison).of("domain", name)}

    assert {name: seeds(name) for name in LOSSES} == {name: {1, 2} for name in LOSSES}, "2 are asked for"
    (comparison / "compare.json").write_text(json.dumps({**asked, "extra_seeds": 4}))
    for row in table["settings"]["domain"]:
        row["asked"] = 2 if row["method"] == "krum" else 4
    (comparison / "table.json").write_text(json.dumps(table))
    assert (seeds("fedcmp"), seeds("krum")) == ({1, 2, 3, 4}, {1, 2}), "it is no strong rival any more"
    (comparison / "compare.json").write_text(json.dumps({**asked, "bounds": False}))
    assert not {"centralized", "local"} & {one.cell.method for one in read_comparison(comparison).results}


def test_many_methods_and_odd_names(tmp_path: Path) -> None:
    names, first = [f"fedavg[server.lr={number}]" for number in range(25)], line("", "fedavg", 1, "final")
    cells = [(setting, "fedavg") for setting in ("a b", "a-b", "<b>&")] + [("domain", name) for name in names]
    lines = [{**first, "cell": {**first["cell"], "setting": setting, "method": name}} for setting, name in cells]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    page = look(write_report(tmp_path, figures=False))
    assert {"setting-a-b", "setting-a-b-2", "setting-b"} <= set(page.ids)
    assert "Setting: <b>&" in page.text
    assert all(name in page.text for name in names)


def test_lines_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"status": "finished"}\n')
    with pytest.raises(RunFolderError, match=r"runs\.jsonl, line 1"):
        write_report(tmp_path)
