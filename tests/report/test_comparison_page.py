"""The page of a comparison: what it shows, and what it does without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedcmp.errors import RunFolderError
from fedcmp.report.comparison.results import BOUNDS, Comparison
from fedcmp.report.page import write_report
from tests.report.conftest import LOSSES, Seen, change, line, look, read, write_lines


def add(folder: Path, *lines: dict) -> None:
    write_lines(folder / "runs.jsonl", lines, "a")


def report(folder: Path) -> Seen:
    return look(write_report(folder, figures=False))


def test_whole(comparison: Path) -> None:
    page = look(write_report(comparison), figures=True)
    assert page.sections == [
        "Over all settings", "Setting: domain", "Setting: iid", "Tuning", "Interference and oscillation", "Cost",
        "Failed runs", "What was asked",
    ]  # fmt: skip
    figures = {"methods", "val-loss", "domains", "tuning", "landscape", "aggregator-energy-kept"}
    assert {f"figure-domain-{name}" for name in figures} | {"figure-cost-time", "figure-cost-traffic"} <= set(page.ids)
    for words in ("1.015 ± 0.007", "DataError: disk gone", "1, 1 failed", "fedcmp compare demo.yaml --seeds 2"):
        assert words in page.text
    assert "Traceback" not in page.text
    bold = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)[0] for row in page.raw.split('<tr class="strong">')[1:]]
    assert bold == ["Fed-CMP", "Fed-CMP (reference)", "FedAvg"], "overall, domain, iid"
    settings = read(comparison / "table.json")["settings"]
    for row in settings["iid"]:
        row |= {"ignores_pictures": row["method"] in ("krum", "local"), "recovered_image_use": 0.25}
    change(comparison / "table.json", settings=settings)
    add(comparison, {**line("iid", "krum", 1, "final"), "device": "H200"})
    page = report(comparison)
    assert page.badge == "unused", "no run has failed any more, but one method ignores pictures"
    assert "iid: Krum." in page.text
    assert re.search(r"cpu \(\d+ runs\); H200 \(1 runs\)", page.text), "all devices"
    assert "different devices" in page.text
    assert "25%" in page.text


def test_a_comparison_that_goes_on(comparison: Path, tmp_path: Path) -> None:
    (comparison / "table.json").unlink()
    for name in ("fedcmp", "krum"):
        (comparison / line("domain", name, 1, "final")["folder"] / "metrics.jsonl").unlink()
    page = report(comparison)
    assert "p (Holm)" not in page.text
    assert "figure-domain-methods" in page.ids
    assert "Interference and oscillation" not in page.sections
    assert (page.badge, Comparison(comparison).missing) == ("failed", 0)
    assert "settings: 2; seeds: 2; runs to tune each method in a setting: 3;" in page.text
    change(comparison / "compare.json", seeds=3)
    assert Comparison(comparison).missing == 10, "three methods and two bounds in two settings"
    tuned = sum(one.cell.stage == "tune" for one in Comparison(comparison).results)
    grid = {setting: {name: [{}] * 4 for name in LOSSES} for setting in ("domain", "iid")}
    change(comparison / "compare.json", grid=grid)
    assert Comparison(comparison).missing == 10 + 10 * 4 - tuned
    page = report(comparison)
    assert page.badge == "running"
    assert "seeds: 2 of 3;" in page.text
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "compare.json").write_text('{"name": "new", "command": "fedcmp compare"}')
    assert report(begun).sections == ["What was asked"]
    add(begun, line("domain", "fedavg", 0, "tune"))
    assert "Tuning" in report(begun).sections
    (begun / "runs.jsonl").write_text('{"status": "finished"}\n')
    with pytest.raises(RunFolderError, match=r"runs\.jsonl, line 1"):
        write_report(begun)


def test_the_last_line_of_a_cell_counts_and_runs_of_an_earlier_question_do_not(comparison: Path) -> None:
    again = line("iid", "krum", 1, "final")
    more = [line(setting, name, seed, "final") for setting in ("domain", "iid") for name in LOSSES for seed in (3, 4)]
    add(comparison, again, line("old setting", "krum", 1, "final"), *more)
    with (comparison / "runs.jsonl").open("a") as file:
        file.write(json.dumps(again)[:50])
    found = Comparison(comparison)
    assert all(one.finished for one in found.results)
    assert found.losses("iid", "krum") == [1.51, 1.52]
    assert found.settings == ["domain", "iid"], "what is no longer asked for is not shown"
    page = report(comparison)
    assert ">recovered<" in page.raw
    assert "not tuned" in page.text
    assert "Tuning" in page.sections
    change(comparison / "compare.json", bounds=False)
    table = read(comparison / "table.json")
    for setting, rows in table["settings"].items():
        table["settings"][setting] = [{**row, "recovered": None} for row in rows if row["method"] not in BOUNDS]
    for runs in table["runs"].values():
        runs |= {name: [one for one in folders if "-final-" in one] for name, folders in runs.items()}
        del runs["centralized"], runs["local"]
    change(comparison / "table.json", **table)
    page = report(comparison)
    assert not any(word in page.raw for word in (">recovered<", "Dashed: "))
    assert "Tuning" not in page.sections
    assert not {*BOUNDS} & {one.cell.method for one in Comparison(comparison).results}


def test_many_methods_and_odd_names(tmp_path: Path) -> None:
    names, first = [f"fedavg[server.lr={number}]" for number in range(25)], line("", "fedavg", 1, "final")
    cells = [(setting, "fedavg") for setting in ("a b", "a-b", "<b>&")] + [("domain", name) for name in names]
    add(tmp_path, *({**first, "cell": {**first["cell"], "setting": one, "method": name}} for one, name in cells))
    page = report(tmp_path)
    assert {"setting-a-b", "setting-a-b-2", "setting-b"} <= set(page.ids)
    assert "Setting: <b>&" in page.text
    assert all(name in page.text for name in names)
