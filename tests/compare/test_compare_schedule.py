"""Which runs are needed, decided on made-up records: nothing is trained here."""

from __future__ import annotations

import csv
import json
from collections import Counter
from typing import Any

import pytest
from small import SMALL

from fedcmp.cli import main
from fedcmp.compare import Request, ask
from fedcmp.compare.foretell import foretell
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.results import evaluate
from fedcmp.compare.schedule import Tuned, favoured, remaining, tuned, wanted
from fedcmp.compare.tables import make_sheets, make_tables
from fedcmp.report.comparison.results import BOUNDS, Cell, Result

METHODS = "fedavg,fedadam,ties,fedcmp"


def jobs_of(**words: Any) -> Jobs:
    return Jobs(ask(None, (), Request(**{"methods": METHODS, "budget": 2, "seeds": 2, **words})))


def line(job: Job, loss: float | None) -> Result:
    test = None if loss is None else {"loss": loss, "worst_domain": {"name": "x", "loss": loss + 1}, "cider": 0.5}
    status, said = ("failed", "it broke") if loss is None else ("finished", None)
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


def test_all_methods_get_as_many_runs_and_the_best_options_are_reported() -> None:
    jobs = jobs_of(scenarios="domain,iid")
    assert remaining(jobs, {}) == 2 * 6 * (2 + 2)
    records = run(jobs, plain)
    cells = [one.cell for one in records.values()]
    seen = Counter((cell.setting, cell.method, cell.stage, cell.seed) for cell in cells)
    each = {("final", 1): 1, ("final", 2): 1, ("tune", 0): 2}
    entrants = [(setting, entrant) for setting in jobs.settings for entrant in jobs.entrants]
    assert seen == {(*one, *what): many for one in entrants for what, many in each.items()}
    for cell in cells:
        best = tuned(jobs, cell.setting, cell.method, records).options
        assert best is not None
        assert best["optimizer.lr"] == 0.01
        assert cell.stage == "tune" or cell.options == best
    untuned = jobs_of(budget=1, bounds=False)
    found = [(job.cell.stage, job.cell.seed, job.cell.options) for job in wanted(untuned, {})]
    assert found == [("final", 1, {})] * 4 + [("final", 2, {})] * 4


def test_who_stops_early_has_methods_side_by_side_and_bounds_later() -> None:
    order = [(job.cell.seed, job.cell.method) for job in wanted(jobs_of(budget=1), {})]
    assert order == [(seed, one) for seed in (1, 2) for one in (*METHODS.split(","), *BOUNDS)]
    assert [job.cell.method for job in wanted(jobs_of(), {})[-4:]] == ["centralized"] * 2 + ["local"] * 2


def test_nothing_is_chosen_before_all_have_been_tried_and_ties_take_the_first() -> None:
    jobs = jobs_of()
    first, second = jobs.tuning("demo", "fedavg")

    def found(*losses: tuple[Job, float | None]) -> Tuned:
        return tuned(jobs, "demo", "fedavg", {job.id: line(job, loss) for job, loss in losses})

    assert found((second, 1.0)) == (None, None)
    assert found((first, 1.0), (second, 1.0)) == (first.cell.options, None)
    assert found((first, None), (second, 9.0)) == (second.cell.options, None)
    assert found((first, None), (second, None)) == (None, "it broke")


def test_with_two_tuning_seeds_the_lowest_mean_is_chosen() -> None:
    jobs = jobs_of(tuning_seeds=2)
    runs = jobs.tuning("demo", "fedavg")
    assert [job.cell.seed for job in runs] == [job.config.run.seed for job in runs] == [0, 0, 1000, 1000]
    first, second = (job.cell.options for job in runs[:2])

    def found(*losses: float | None) -> Tuned:
        return tuned(jobs, "demo", "fedavg", {job.id: line(job, loss) for job, loss in zip(runs, losses, strict=False)})

    assert found(1.0, 2.0, 9.0) == (None, None)
    assert found(1.0, 2.0, 5.0, 3.0) == (second, None)
    assert found(1.0, 2.0, 5.0, 4.5) == (first, None)
    assert found(1.0, 2.0, None, 9.0) == (second, None)
    assert found(1.0, None, None, 9.0) == (None, "it broke")


def test_the_strongest_rivals_get_the_extra_seeds() -> None:
    jobs = jobs_of(extra_seeds=4, rivals=1)
    some = run(jobs_of(), plain)
    assert favoured(jobs, "demo", some) == {"fedcmp", "fedavg", "centralized", "local"}
    fewer = {id_: one for id_, one in some.items() if (one.cell.method, one.cell.seed) != ("ties", 2)}
    assert favoured(jobs, "demo", fewer) == set(), "who is strong is not known yet"
    fails = run(jobs, lambda cell: None if (cell.method, cell.seed) == ("fedavg", 2) else plain(cell))
    assert favoured(jobs, "demo", fails) == {"fedcmp", "ties", "centralized", "local"}
    rows = {row.method: row for row in evaluate(jobs, run(jobs, plain)).settings["demo"]}
    few, many = {1, 2}, {1, 2, 3, 4}
    assert {name: set(row.losses) for name, row in rows.items()} == {
        **dict.fromkeys(("fedavg", "fedcmp", "centralized", "local"), many), "ties": few, "fedadam": few
    }  # fmt: skip
    assert (rows["fedavg"].against.pairs, rows["ties"].against.pairs) == (4, 2)
    assert {rows[name].rank for name in jobs.methods} == {1.0, 2.0, 3.0, 4.0}


SHARED = {"fedcmp": (1.0, 1.0, 2.0, 2.0), "fedavg": (1.1, 1.1, 1.9, 1.95), "ties": (1.2, 1.2), "fedadam": (1.3, 1.3)}
"""The reference is ahead on the seeds that all have; seeds 3 and 4 are harder, and only it and FedAvg run them."""


def shared(cell: Cell) -> float | None:
    if cell.method in BOUNDS:
        return {"centralized": 0.5, "local": 3.0}[cell.method]
    return SHARED[cell.method][max(cell.seed, 1) - 1]


def test_the_order_of_methods_is_by_the_seeds_that_all_have() -> None:
    jobs = jobs_of(scenarios="domain,iid", extra_seeds=4, rivals=1)
    records = run(jobs, shared)
    found = evaluate(jobs, records)
    rows = found.settings["domain"]
    assert [row.method for row in rows] == ["centralized", "fedcmp", "fedavg", "ties", "fedadam", "local"]
    assert rows[1].mean > rows[3].mean, "over all seeds of each, it looks worse than what it beats"
    assert [row.shared for row in rows[1:5]] == [pytest.approx(value) for value in (1.0, 1.1, 1.2, 1.3)]
    assert {row.method: row.best for row in found.overall} == {"fedcmp": 2, "fedavg": 0, "ties": 0, "fedadam": 0}
    tables = make_tables("x", jobs, found)
    assert "| **fedcmp (reference)** | 1.500 |" in tables["md"]
    read = {(row["setting"], row["method"]): row for row in csv.DictReader(tables["csv"].splitlines())}
    whole, one = read["all settings", "fedcmp"], read["domain", "fedcmp"]
    assert (float(one["test_loss"]), float(one["shared_loss"]), one["seeds"]) == (1.5, 1.0, "4")
    assert (whole["seeds"], whole["seeds_asked"], whole["best_in_settings"]) == ("", "8", "2")
    assert (read["all settings", "fedavg"]["wins"], read["all settings", "fedavg"]["losses"]) == ("4", "4")
    told = {row["method"]: row for row in json.loads(tables["json"])["settings"]["domain"]}
    assert (told["ties"]["by_seed"], told["ties"]["asked"]) == ({"1": 1.2, "2": 1.2}, 2)
    # where a method has no run yet none is best
    found = evaluate(jobs, {key: one for key, one in records.items() if one.cell.method != "ties"})
    assert {row.shared for rows in found.settings.values() for row in rows} == {None}
    assert {row.best for row in found.overall} == {0}
    tables = make_tables("x", jobs, found)
    assert "**" not in tables["md"]
    assert "Unfinished: 4 of 24" in tables["text"]


def test_of_equal_ranks_over_all_settings_the_lower_loss_is_first() -> None:
    losses = {("fedcmp", "domain"): 1.5, ("fedavg", "domain"): 1.0, ("fedcmp", "iid"): 1.0, ("fedavg", "iid"): 1.1}
    jobs = jobs_of(scenarios="domain,iid")
    found = evaluate(jobs, run(jobs, lambda cell: losses.get((cell.method, cell.setting), 3.0)))
    assert [(row.method, row.rank) for row in found.overall[:2]] == [("fedavg", 1.5), ("fedcmp", 1.5)]


def test_a_method_that_failed_on_a_seed_takes_it_from_no_other_and_gains_nothing() -> None:
    jobs = jobs_of(extra_seeds=4, rivals=1)
    records = run(jobs, lambda cell: None if (cell.method, cell.seed) == ("ties", 2) else shared(cell))
    rows = {row.method: row for row in evaluate(jobs, records).settings["demo"]}
    assert list(rows) == ["centralized", "fedcmp", "fedavg", "fedadam", "ties", "local"]
    assert rows["ties"].mean < rows["fedadam"].mean
    assert (rows["ties"].shared, rows["fedavg"].shared) == (None, pytest.approx(1.1))
    none = run(jobs, lambda cell: None if cell.seed == 2 else shared(cell))
    rows = {row.method: row for row in evaluate(jobs, none).settings["demo"]}
    assert [rows[name].shared for name in SHARED] == [1.0, 1.1, 1.2, 1.3], "where all failed on it, the others count"


def test_the_numbers_of_a_row_by_hand() -> None:
    found = evaluate(jobs_of(), run(jobs_of(), plain)).settings["demo"]
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
    assert fedavg.measures == {"test/worst_domain": pytest.approx(fedavg.mean + 1), "test/cider": 0.5}


def test_failures_are_shown_and_never_dropped() -> None:
    def loss(cell: Cell) -> float | None:
        return None if cell.method == "ties" or (cell.method, cell.seed) == ("fedadam", 1) else plain(cell)

    jobs = jobs_of(scenarios="domain,iid")
    found = evaluate(jobs, run(jobs, loss))
    rows = {row.method: row for row in found.settings["domain"]}
    assert (rows["ties"].failed, rows["fedadam"].failed) == (frozenset({1, 2}), frozenset({1}))
    assert (rows["fedadam"].losses.keys(), rows["fedadam"].rank) == ({2}, 3.25)
    assert list(rows)[-2:] == ["ties", "local"]
    tables = make_tables("x", jobs, found)
    for words in ("[failed 2 of 2 seeds]", "[failed 1 of 2 seeds]", "ties failed: it broke", "[failed 4 of 4 runs]"):
        assert words in tables["text"]
    assert all("failed" in tables[kind] for kind in ("md", "csv", "tex"))


def test_the_same_numbers_in_every_form() -> None:
    jobs = jobs_of(scenarios="a & b=domain,iid", methods="fedavg,100% me_too=fedavg:optimizer.schedule=linear,fedcmp")
    records = run(jobs, lambda cell: plain(cell._replace(method=cell.method.replace("100% me_too", "ties"))))
    found = evaluate(jobs, records)
    tables, sheets = make_tables("x", jobs, found), make_sheets(jobs, found)
    latex = tables["tex"]
    assert r"\caption{a \& b." in latex
    assert r"100\% me\_too" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == latex.count(r"\toprule") == len(sheets) == 5
    for block in latex.split(r"\midrule")[1:]:
        body = block.split(r"\bottomrule")[0].strip().splitlines()
        assert len({row.count(" & ") for row in body}) == 1
        assert all(row.endswith(r"\\") for row in body)
    best = f"{found.settings['iid'][1].mean:.3f}"
    assert rf"\textbf{{Fed-CMP (reference)}} & {best} &" in latex
    assert f"| **fedcmp (reference)** | {best} |" in tables["md"]
    assert "10 of 10 chosen rates are the largest or the least" in tables["md"], "of two"


def test_a_dry_run_counts_what_a_comparison_would_do_and_writes_nothing(tmp_path, capsys) -> None:
    words = [*SMALL, "--methods", "fedavg,fedcmp", "--seeds", "2", "--budget", "2", "--out", str(tmp_path / "new")]
    assert main(["compare", *words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "demo fedcmp 2 2" in said
    assert "runs 16 to do training samples 1,024" in said, "of 2 x 8 clients x 4 samples each"
    assert not list(tmp_path.iterdir())
    jobs = Jobs(ask(None, SMALL, Request(methods="fedavg,fedcmp", seeds=2, budget=2)))
    ended = jobs.tuning("demo", "fedavg")[0]
    record = line(ended, 1.0).record | {"seconds": {"total": 60.0}, "cell": ended.cell._asdict()}
    (tmp_path / "runs.jsonl").write_text(json.dumps({**record, "folder": f"cells/{ended.id}"}) + "\n")
    said = foretell(jobs.study, tmp_path)
    assert "15 to do" in said
    assert "15.0 min, one at a time" in said
