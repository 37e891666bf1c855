"""Which runs are needed, decided on made-up records: nothing is trained here."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from fedcmp.compare import Request, ask
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.results import evaluate
from fedcmp.compare.schedule import chosen, favoured, remaining, wanted
from fedcmp.compare.tables import as_csv, as_json, as_latex, as_markdown, as_text, make_legend, make_sheets
from fedcmp.report.comparison.results import BOUNDS, Cell, Result

METHODS = "fedavg,fedadam,ties,fedcmp"


def jobs_of(**words: Any) -> Jobs:
    return Jobs(ask(None, (), Request(**{"methods": METHODS, "budget": 2, "seeds": 2, **words})))


def line(job: Job, loss: float | None, error: str = "it broke") -> Result:
    test = None if loss is None else {"loss": loss, "worst_domain": {"name": "x", "loss": loss + 1}, "cider": 0.5}
    status, said = ("failed", error) if loss is None else ("finished", None)
    return Result(job.cell, {"status": status, "error": said, "val_loss": loss, "test": test})


def run(jobs: Jobs, loss: Any) -> dict[str, Any]:
    """All runs, by what ``loss`` says of a cell; None: it fails."""
    records: dict[str, Any] = {}
    while todo := [job for job in wanted(jobs, records) if job.id not in records]:
        assert remaining(jobs, records) >= len(todo)
        records |= {todo[0].id: line(todo[0], loss(todo[0].cell))}
    assert remaining(jobs, records) == 0
    return records


def plain(cell: Cell) -> float:
    """Worse from method to method and from seed to seed; the doubled learning rate is better."""
    place = ["centralized", "fedcmp", "fedavg", "ties", "fedadam", "local"].index(cell.method)
    return 1.0 + place + 0.01 * cell.seed**2 * (place + 1) - 0.001 * cell.options.get("optimizer.lr", 0)


def test_everybody_gets_the_same_number_of_runs_and_the_best_is_reported() -> None:
    jobs = jobs_of(scenarios="domain,iid")
    assert remaining(jobs, {}) == 2 * 6 * (2 + 2)
    records = run(jobs, plain)
    assert len(records) == 2 * 6 * (2 + 2)
    for setting in jobs.settings:
        for entrant in (*jobs.methods, *jobs.bounds):
            cells = [one.cell for one in records.values()]
            mine = [cell for cell in cells if (cell.setting, cell.method) == (setting, entrant)]
            assert sorted((cell.stage, cell.seed) for cell in mine) == [
                ("final", 1),
                ("final", 2),
                ("tune", 0),
                ("tune", 0),
            ]
            best = chosen(jobs, setting, entrant, records)
            assert best is not None
            assert best["optimizer.lr"] == 0.01
            assert all(cell.options == best for cell in mine if cell.stage == "final")


def test_nothing_is_chosen_before_all_have_been_tried_and_ties_take_the_first() -> None:
    jobs = jobs_of()
    first, second = jobs.tuning("demo", "fedavg")
    assert chosen(jobs, "demo", "fedavg", {second.id: line(second, 1.0)}) is None
    same = {first.id: line(first, 1.0), second.id: line(second, 1.0)}
    assert chosen(jobs, "demo", "fedavg", same) == first.cell.options
    lost = {first.id: line(first, None), second.id: line(second, 9.0)}
    assert chosen(jobs, "demo", "fedavg", lost) == second.cell.options
    assert chosen(jobs, "demo", "fedavg", {one.id: line(one, None) for one in (first, second)}) is None


def test_a_budget_of_one_tunes_nothing() -> None:
    jobs = jobs_of(budget=1, bounds=False)
    assert [(job.cell.stage, job.cell.seed) for job in wanted(jobs, {})] == [("final", 1)] * 4 + [("final", 2)] * 4
    assert all(job.cell.options == {} for job in wanted(jobs, {}))


def test_the_strongest_rivals_get_the_extra_seeds() -> None:
    jobs = jobs_of(extra_seeds=4, rivals=1)
    some = run(jobs_of(), plain)
    assert favoured(jobs, "demo", some) == {"fedcmp", "fedavg", "centralized", "local"}
    fewer = {id_: one for id_, one in some.items() if (one.cell.method, one.cell.seed) != ("ties", 2)}
    assert favoured(jobs, "demo", fewer) == set(), "who is strong is not known yet"
    records = run(jobs, plain)
    seeds = {
        method: {one.cell.seed for one in records.values() if (one.cell.method, one.cell.stage) == (method, "final")}
        for method in (*jobs.methods, *jobs.bounds)
    }
    assert seeds == {
        **{method: {1, 2, 3, 4} for method in ("fedavg", "fedcmp", "centralized", "local")},
        **{method: {1, 2} for method in ("ties", "fedadam")},
    }
    rows = {row.method: row for row in evaluate(jobs, records).settings["demo"]}
    assert (rows["fedavg"].against.pairs, rows["ties"].against.pairs) == (4, 2)
    assert {rows[name].rank for name in ("fedcmp", "fedavg", "ties", "fedadam")} == {1.0, 2.0, 3.0, 4.0}


SHARED = {"fedcmp": (1.0, 1.0, 2.0, 2.0), "fedavg": (1.1, 1.1, 1.9, 1.95), "ties": (1.2, 1.2), "fedadam": (1.3, 1.3)}
"""The reference is ahead on the seeds that all have; seeds 3 and 4 are harder, and only it and FedAvg run them."""


def shared(cell: Cell) -> float | None:
    if cell.method in BOUNDS:
        return {"centralized": 0.5, "local": 3.0}[cell.method]
    return SHARED[cell.method][max(cell.seed, 1) - 1]


def test_methods_stand_in_the_order_of_the_seeds_that_all_have() -> None:
    jobs = jobs_of(scenarios="domain,iid", extra_seeds=4, rivals=1)
    records = run(jobs, shared)
    found = evaluate(jobs, records)
    rows = found.settings["domain"]
    assert [row.method for row in rows] == ["centralized", "fedcmp", "fedavg", "ties", "fedadam", "local"]
    assert rows[1].mean > rows[3].mean, "over all seeds of each, it looks worse than what it beats"
    assert [row.shared for row in rows[1:5]] == [pytest.approx(value) for value in (1.0, 1.1, 1.2, 1.3)]
    assert {row.method: row.best for row in found.overall} == {"fedcmp": 2, "fedavg": 0, "ties": 0, "fedadam": 0}
    drawn = make_sheets(jobs, found)
    assert drawn[0].rows[drawn[0].best][0] == "fedcmp (reference)"
    assert "| **fedcmp (reference)** | 1.500 |" in as_markdown("x", drawn, [])
    read = next(csv.DictReader(line for line in io.StringIO(as_csv(jobs, found)) if "centralized" not in line))
    assert (read["method"], float(read["test_loss"]), float(read["shared_loss"])) == ("fedcmp", 1.5, 1.0)
    told = {row["method"]: row for row in json.loads(as_json(jobs, found))["settings"]["domain"]}
    assert (told["ties"]["by_seed"], told["ties"]["asked"]) == ({"1": 1.2, "2": 1.2}, 2)
    assert told["fedavg"]["asked"] == 4


def test_who_failed_on_a_seed_takes_it_from_nobody_and_gains_nothing() -> None:
    jobs = jobs_of(extra_seeds=4, rivals=1)
    records = run(jobs, lambda cell: None if (cell.method, cell.seed) == ("ties", 2) else shared(cell))
    rows = {row.method: row for row in evaluate(jobs, records).settings["demo"]}
    assert list(rows) == ["centralized", "fedcmp", "fedavg", "fedadam", "ties", "local"]
    assert rows["ties"].mean < rows["fedadam"].mean
    assert (rows["ties"].shared, rows["fedavg"].shared) == (None, pytest.approx(1.1))
    none = run(jobs, lambda cell: None if cell.seed == 2 else shared(cell))
    rows = {row.method: row for row in evaluate(jobs, none).settings["demo"]}
    assert [rows[name].shared for name in SHARED] == [1.0, 1.1, 1.2, 1.3], "where all failed on it, the others count"


def test_a_rival_that_fails_gets_no_extra_seeds() -> None:
    jobs = jobs_of(extra_seeds=3, rivals=1)
    records = run(jobs, lambda cell: None if cell.method == "fedavg" and cell.seed == 2 else plain(cell))
    assert favoured(jobs, "demo", records) == {"fedcmp", "ties", "centralized", "local"}


def test_the_numbers_of_a_row_by_hand() -> None:
    found = evaluate(jobs_of(), run(jobs_of(), plain)).settings["demo"]
    assert [row.method for row in found] == ["centralized", "fedcmp", "fedavg", "ties", "fedadam", "local"]
    fedavg = found[2]
    one, two = 3.0 + 0.03 - 1e-5, 3.0 + 0.12 - 1e-5
    assert fedavg.losses == {1: pytest.approx(one), 2: pytest.approx(two)}
    assert fedavg.mean == pytest.approx((one + two) / 2)
    assert fedavg.deviation == pytest.approx((two - one) / 2**0.5)
    local, best = (6.06, 6.24), (1.01, 1.04)
    parts = [(loss - down) / (up - down) for loss, down, up in zip((3.03, 3.12), local, best, strict=True)]
    assert fedavg.recovered == pytest.approx(sum(parts) / 2, rel=1e-4)
    assert fedavg.against.difference == pytest.approx((1.01 + 1.04) / 2)
    assert fedavg.p_holm > fedavg.against.p > 0
    assert fedavg.measures == {"worst domain": pytest.approx(fedavg.mean + 1), "CIDEr": 0.5}


def test_failures_are_shown_and_never_dropped() -> None:
    def loss(cell: Cell) -> float | None:
        if cell.method == "ties" or (cell.method == "fedadam" and cell.seed == 1):
            return None
        return plain(cell)

    jobs = jobs_of(scenarios="domain,iid")
    records = run(jobs, loss)
    found = evaluate(jobs, records)
    rows = {row.method: row for row in found.settings["domain"]}
    assert (rows["ties"].failed, rows["fedadam"].failed) == (frozenset({1, 2}), frozenset({1}))
    assert (rows["fedadam"].losses.keys(), rows["fedadam"].rank) == ({2}, 3.25)
    assert [row.method for row in found.settings["domain"]][-2:] == ["ties", "local"]
    text = as_text(make_sheets(jobs, found), make_legend(jobs))
    assert "ties [failed 2 of 2 seeds]" in text
    assert "fedadam [failed 1 of 2 seeds]" in text
    assert "ties failed: it broke" in text
    assert "ties [failed 4 of 4 runs]" in text
    assert all("failed" in drawn for drawn in (as_markdown("x", make_sheets(jobs, found), []), as_csv(jobs, found)))


def test_one_seed_has_dashes_and_no_p() -> None:
    jobs = jobs_of(seeds=1)
    found = evaluate(jobs, run(jobs, plain))
    for row in found.settings["demo"]:
        assert row.deviation is None
        assert row.p_holm is None
        assert row.against is None or row.against.p is None
    sheet = make_sheets(jobs, found)[0]
    assert {row[sheet.header.index("sd")] for row in sheet.rows} == {None}
    assert {row[sheet.header.index("p")] for row in sheet.rows} == {None}


def test_tables_before_anything_has_run() -> None:
    jobs = jobs_of(scenarios="domain,iid", extra_seeds=3)
    text = as_text(make_sheets(jobs, evaluate(jobs, {})), make_legend(jobs))
    assert "0 of 2" in text
    assert "all settings" in text
    alone = jobs_of(scenarios="domain,iid", methods="fedavg", bounds=False)
    assert [sheet.title for sheet in make_sheets(alone, evaluate(alone, {}))] == ["domain", "iid"]


def test_the_same_numbers_in_every_form() -> None:
    jobs = jobs_of(scenarios="a & b=domain,iid", methods="fedavg,100% me_too=fedavg:optimizer.schedule=linear,fedcmp")
    records = run(jobs, lambda cell: plain(cell._replace(method=cell.method.replace("100% me_too", "ties"))))
    found = evaluate(jobs, records)
    drawn = make_sheets(jobs, found)
    latex = as_latex(drawn, make_legend(jobs))
    assert r"\caption{a \& b." in latex
    assert r"100\% me\_too" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == latex.count(r"\toprule") == len(drawn) == 5
    for block in latex.split(r"\midrule")[1:]:
        body = block.split(r"\bottomrule")[0].strip().splitlines()
        assert len({row.count(" & ") for row in body}) == 1
        assert all(row.endswith(r"\\") for row in body)
    best = f"{found.settings['iid'][1].mean:.3f}"
    assert rf"\textbf{{fedcmp (reference)}} & {best} &" in latex
    assert f"| **fedcmp (reference)** | {best} |" in as_markdown("x", drawn, make_legend(jobs))
    read = list(csv.DictReader(io.StringIO(as_csv(jobs, found))))
    assert len(read) == 2 * 5 + 3
    row = next(one for one in read if (one["setting"], one["method"]) == ("iid", "fedavg"))
    assert float(row["test_loss"]) == pytest.approx(found.settings["iid"][2].mean)
    assert (row["kind"], row["wins"], row["losses"]) == ("rival", "0", "2")
    overall = next(one for one in read if (one["setting"], one["method"]) == ("all settings", "fedavg"))
    assert float(overall["p_holm"]) >= float(overall["p"])
