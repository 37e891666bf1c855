"""The page of a comparison: what it claims, and what it does without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedcmp.errors import RunFolderError
from fedcmp.report.comparison.reading import read_comparison
from fedcmp.report.page import write_report
from tests.report.conftest import LOSSES, line
from tests.report.pages import look


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
    assert "one cell failed" in page.text


def test_bold_is_the_best_of_the_methods(comparison: Path) -> None:
    page = write_report(comparison, figures=False).read_text()
    bold = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)[:2] for row in page.split('<tr class="strong">')[1:]]
    assert [row[0] for row in bold] == ["Fed-CMP", "Fed-CMP (reference)", "FedAvg"], "overall, domain, iid"


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


def test_methods_are_in_the_order_of_the_seeds_that_all_have(tmp_path: Path) -> None:
    def row(name: str, losses: list[float], shared: float | None) -> dict[str, Any]:
        return {"method": name, "mean": sum(losses) / len(losses), "shared": shared}

    rows = [row("krum", [0.9], None), row("ties", [1.3, 1.4], 1.35), row("fedavg", [1.2, 1.3], 1.25)]
    rows += [row("fedcmp", [1.0, 1.1, 2.0, 2.0], 1.05)]
    (tmp_path / "table.json").write_text(json.dumps({"settings": {"s": rows}}))
    (tmp_path / "compare.json").write_text("{}")
    shown = look(write_report(tmp_path, figures=False)).text
    places = [shown.index(name, shown.index("in the order of")) for name in ("Fed-CMP", "FedAvg", "TIES", "Krum")]
    assert places == sorted(places)


def test_without_a_table_there_are_figures(comparison: Path) -> None:
    (comparison / "table.json").unlink()
    page = look(write_report(comparison, figures=False))
    assert "p (Holm)" not in page.text
    assert "figure-domain-methods" in page.ids
    assert "The table has not been written yet" in page.text


def test_just_begun(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text('{"name": "new", "command": "fedcmp compare"}')
    assert look(write_report(tmp_path, figures=False)).sections == ["What was asked"]
    (tmp_path / "runs.jsonl").write_text(json.dumps(line("domain", "fedavg", 0, "tune")) + "\n")
    assert "Tuning" in look(write_report(tmp_path, figures=False)).sections


def test_cells_without_folders(comparison: Path) -> None:
    for name in ("fedcmp", "krum"):
        (comparison / line("domain", name, 1, "final")["folder"] / "metrics.jsonl").unlink()
    page = look(write_report(comparison, figures=False))
    assert "Interference and oscillation" not in page.sections
    assert "figure-domain-val-loss" not in page.ids


def test_the_last_line_of_a_cell_counts(comparison: Path) -> None:
    again = line("iid", "krum", 1, "final")
    with (comparison / "runs.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
        file.write(json.dumps(line("old setting", "krum", 1, "final")) + "\n")
        file.write(json.dumps(again)[:50])
    found = read_comparison(comparison)
    assert all(cell.finished for cell in found.cells)
    assert found.losses("iid", "krum") == [1.51, 1.52]
    assert found.settings == ["domain", "iid"], "what is no longer asked for is not shown"


def test_the_page_shows_the_seeds_of_the_table(comparison: Path) -> None:
    more = [line(setting, name, seed, "final") for setting in ("domain", "iid") for name in LOSSES for seed in (3, 4)]
    more[-1] |= {"status": "failed", "error": "of a seed that nobody asks for now", "test": None}
    with (comparison / "runs.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in more)
    asked, table = (json.loads((comparison / f"{name}.json").read_text()) for name in ("compare", "table"))

    def seeds(name: str) -> set[str]:
        return {cell.seed for cell in read_comparison(comparison).of("domain", name)}

    assert {name: seeds(name) for name in LOSSES} == {name: {"1", "2"} for name in LOSSES}, "2 are asked for"
    assert "nobody asks" not in look(write_report(comparison, figures=False)).text
    (comparison / "compare.json").write_text(json.dumps({**asked, "extra_seeds": 4}))
    for row in table["settings"]["domain"]:
        row["asked"] = 2 if row["method"] == "krum" else 4
    (comparison / "table.json").write_text(json.dumps(table))
    assert (seeds("fedcmp"), seeds("krum")) == ({"1", "2", "3", "4"}, {"1", "2"}), "it is no strong rival any more"
    (comparison / "compare.json").write_text(json.dumps({**asked, "bounds": False}))
    assert not {"centralized", "local"} & {cell.method for cell in read_comparison(comparison).cells}


def test_names_that_differ_in_a_sign_only(tmp_path: Path) -> None:
    lines = [line(name, "fedavg", 1, "final") for name in ("a b", "a-b", "<b>&")]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    page = look(write_report(tmp_path, figures=False))
    assert {"setting-a-b", "setting-a-b-2", "setting-b"} <= set(page.ids)
    assert "Setting: <b>&" in page.text


def test_many_methods_keep_apart(tmp_path: Path) -> None:
    names = [f"fedavg[server.lr={number}]" for number in range(25)]
    lines = [
        {**line("domain", "fedavg", seed, "final"), "cell": line("domain", name, seed, "final")["cell"]}
        if name == "fedcmp"
        else line("domain", "fedavg", seed, "final") | {"cell": {"setting": "domain", "method": name, "seed": seed}}
        for name in names
        for seed in (1, 2)
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    page = look(write_report(tmp_path, figures=False))
    assert all(name in page.text for name in names)


def test_lines_that_are_no_cells(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"status": "finished"}\n')
    with pytest.raises(RunFolderError, match=r'runs\.jsonl, line 1: expected a "cell"'):
        write_report(tmp_path)
