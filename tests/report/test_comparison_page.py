"""The page of a comparison: what it claims, and what it does without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcmp.errors import RunFolderError
from fedcmp.report.comparison.reading import read_comparison
from fedcmp.report.comparison.verdict import verdict
from fedcmp.report.page import write_report
from tests.report.conftest import LOSSES, line
from tests.report.pages import look


def test_whole(comparison: Path) -> None:
    page = look(write_report(comparison), figures=True)
    assert page.sections == [
        "What the numbers say",
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


def test_the_verdict_claims_what_the_test_carries(comparison: Path) -> None:
    overall, domain, iid = verdict(read_comparison(comparison))
    assert "lowest mean loss in 1 of 2 settings" in overall
    assert "it wins 2, ties 0 and loses 2 against Fed-CMP, p = 0.600" in overall
    assert "Fed-CMP is better than the best rival by 0.200 nats per token (p = 0.004)" in domain
    assert "80%, FedAvg 60%" in domain
    assert "beats 2 beyond chance." in domain
    assert "Fed-CMP is behind by 0.050, which may be chance (p = 0.400)" in iid
    assert "beats none beyond chance" in iid


@pytest.mark.parametrize(
    ("ours", "p", "said"),
    [
        (1.0, 0.01, "is better than the best rival by 0.200"),
        (1.0, 0.2, "is ahead by 0.200, which may be chance (p = 0.200)"),
        (1.0, None, "is ahead by 0.200, which may be chance (p unknown)"),
        (1.4, 0.0001, "is worse than FedAvg by 0.200 nats per token (p < 0.001)"),
        (1.4, 0.2, "is behind by 0.200, which may be chance"),
    ],
)
def test_every_verdict(tmp_path: Path, ours: float, p: float | None, said: str) -> None:
    rows: list[dict[str, Any]] = [{"method": "fedcmp", "mean": ours}, {"method": "fedavg", "mean": 1.2, "p_holm": p}]
    rows += [{"method": "local", "mean": 0.1, "p_holm": 0.001}, {"method": "krum", "mean": None, "failed": 2}]
    (tmp_path / "table.json").write_text(json.dumps({"settings": {"s": rows}, "overall": []}))
    (text,) = verdict(read_comparison(tmp_path))
    assert said in text


def test_the_verdict_speaks_of_the_seeds_on_which_methods_met(tmp_path: Path) -> None:
    def row(name: str, losses: list[float], shared: float | None, p: float | None) -> dict[str, Any]:
        by_seed = {str(seed): loss for seed, loss in enumerate(losses, 1)}
        return {"method": name, "mean": sum(losses) / len(losses), "shared": shared, "by_seed": by_seed, "p_holm": p}

    rows = [row("fedcmp", [1.0, 1.1, 2.0, 2.0], 1.05, None), row("fedavg", [1.2, 1.3], 1.25, 0.01)]
    rows += [row("ties", [1.3, 1.4], 1.35, 0.01), row("krum", [0.9], None, 0.3)]
    overall = [{"method": "fedcmp", "mean_rank": 1}, {"method": "fedavg", "mean_rank": 2}]
    table = {"settings": {"s": rows[::-1], "t": rows}, "overall": overall}
    (tmp_path / "table.json").write_text(json.dumps(table))
    (tmp_path / "compare.json").write_text("{}")
    whole, text, _ = verdict(read_comparison(tmp_path))
    assert "lowest mean loss in 2 of 2 settings" in whole
    assert "s: Fed-CMP 1.050, FedAvg 1.250 on the 2 seeds that both have. Fed-CMP is better than the best rival" in text
    assert "by 0.200 nats per token (p = 0.010)" in text
    assert "it beats 2 beyond chance." in text
    shown = look(write_report(tmp_path, figures=False)).text
    places = [shown.index(name, shown.index("in the order of")) for name in ("Fed-CMP", "FedAvg", "TIES", "Krum")]
    assert places == sorted(places)


def test_without_a_table_there_are_plain_means(comparison: Path) -> None:
    (comparison / "table.json").unlink()
    page = look(write_report(comparison, figures=False))
    assert "untested" in page.text
    assert "±" not in page.text
    assert "p (Holm)" not in page.text
    assert "1.015" in page.text  # the mean of 1.01 and 1.02
    assert "The table has not been written yet" in page.text


def test_just_begun(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text('{"name": "new", "command": "fedcmp compare"}')
    assert look(write_report(tmp_path, figures=False)).sections == ["What the numbers say", "What was asked"]
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
