"""The page of a comparison: all its sections, in the order of reading."""

from __future__ import annotations

import json
import math
from collections import Counter
from operator import itemgetter
from statistics import fmean
from typing import Any

from fedcmp.measures import metric
from fedcmp.report.blocks import Fact, Grid, Listing, Page, Section, facts
from fedcmp.report.comparison.pictures import DYNAMICS, draw_costs, draw_curves, draw_domains, draw_grids, draw_losses
from fedcmp.report.comparison.results import BOUNDS, TUNE, Comparison, Result
from fedcmp.report.formatting import count, duration, human, identifier, is_number, listed, method, number, p_value

TUNING = (
    "Each dot is one cell of a method's grid, the mean over tuning seeds; the ring is its best, which the final runs "
    "use. Settings are chosen on the validation samples, results are those of the test samples."
)
HOW_THEY_STEP = (
    "Energy is lost where clients' updates point apart and the mean takes away what each adds. A cosine below 0 "
    "between two successive server steps means that the second one swings back."
)


def comparison_page(comparison: Comparison) -> Page:
    """What a comparison folder shows; parts that are missing are left out."""
    failed = sum(not one.finished for one in comparison.results)
    blind = _methods_without_pictures(comparison)
    if comparison.missing:
        state, badge = "running", f"at least {comparison.missing:,} to do"
    elif failed:
        state, badge = "failed", "one cell failed" if failed == 1 else f"{failed} cells failed"
    elif blind:
        state, badge = "unused", "pictures not used"
    elif comparison.table:
        state, badge = "finished", "finished"
    else:
        state, badge = "running", "no table yet"
    rivals = [method(one) for one in comparison.methods if one not in BOUNDS]
    bounds = [method(one) for one in comparison.methods if one in BOUNDS]
    seeds = {one.cell.seed for one in comparison.results if one.cell.stage != TUNE}
    asked = comparison.asked.get("seeds", 0)
    done = f"{len(seeds)} of {asked}" if len(seeds) < asked else str(len(seeds))
    tuned = max(comparison.grid_sizes, default=0)
    lead = f"{listed(rivals, 12)}; settings: {len(comparison.settings)}; seeds: {done}"
    lead += f"; runs to tune each method in a setting: {tuned}" if tuned else "; nothing tuned"
    return Page(
        kind="Comparison",
        title=comparison.name,
        lead=lead + (f"; {listed(bounds)} for comparison." if bounds else "."),
        state=state,
        badge=badge,
        facts=_facts(comparison, failed),
        sections=[
            _overall(comparison),
            *(_setting(comparison, name) for name in comparison.settings),
            _tuning(comparison),
            _dynamics(comparison),
            _costs(comparison),
            _failed(comparison),
            _asked(comparison),
        ],
        alarm=blind if comparison.table else "No table yet: the comparison goes on, or it was stopped.",
    ).cleaned()


def _methods_without_pictures(comparison: Comparison) -> str:
    found = []
    for name in comparison.settings:
        rows = [row for row in comparison.rows(name) if row.get("ignores_pictures") and row["method"] not in BOUNDS]
        found += [f"{name}: {listed([method(row['method']) for row in rows])}"] if rows else []
    return f"The pictures do not matter: image use is about zero. {'; '.join(found)}." if found else ""


def _facts(comparison: Comparison, failed: int) -> list[Fact]:
    results = comparison.results
    tuned = sum(one.cell.stage == TUNE for one in results)
    found = [
        Fact("Methods", count(len(comparison.methods)), "bounds among them" if "local" in comparison.methods else ""),
        Fact("Settings", count(len(comparison.settings))),
        Fact("Runs", count(len(results)), f"{tuned:,} to tune, {len(results) - tuned:,} final"),
    ]
    if failed:
        found.append(Fact("Failed", count(failed), "listed below"))
    if missing := comparison.missing:
        found.append(Fact("To do", count(missing), "or more; figures are of what is there"))
    if seconds := sum(one.measured("seconds", "total") or 0 for one in results):
        found.append(Fact("Computing time", duration(seconds), "of all runs"))
    if samples := sum(one.measured("samples_seen") or 0 for one in results):
        found.append(Fact(metric("samples_seen").heading, count(samples), "by all runs"))
    return found


def _overall(comparison: Comparison) -> Section:
    rows = comparison.table.get("overall") or []
    lines = []
    for row in rows:
        counts = [count(row.get(key)) for key in ("wins", "ties", "losses")]
        rank, difference = number(row.get("mean_rank"), 2), _signed(row.get("difference"))
        lines.append([method(row["method"]), rank, *counts, difference, p_value(row.get("p_holm"))])
    header = ["method", "mean rank", "better", "equal", "worse", "difference", "p (Holm)"]
    strong = [0] if rows and is_number(rows[0].get("mean_rank")) else []
    heading = f"Ranks, and seeds won against {method(comparison.reference)}"
    grid = Grid(heading, header, lines, strong=strong).without_empty()
    several = rows and len(comparison.settings) > 1
    reading = "\n".join(comparison.table.get("legend", ()))
    legend = [Listing("How to read the tables", reading)] if reading else []
    title = "Over all settings" if several else "Legend"
    return Section("overall", title, grids=[grid] if several else [], listings=legend)


def _setting(comparison: Comparison, name: str) -> Section:
    pictures = [
        *draw_losses(comparison, name),
        *draw_curves(comparison, name, "val/loss"),
        *draw_domains(comparison, name),
    ]
    grid = _table(comparison, name)
    return Section(f"setting-{identifier(name)}", f"Setting: {name}", pictures=pictures, grids=[grid])


def _table(comparison: Comparison, name: str) -> Grid:
    rows, lines = sorted(comparison.rows(name), key=lambda row: row["method"] in BOUNDS), []
    for row in rows:
        losses = comparison.losses(name, row["method"]) or row.get("seeds") or []
        sd = f" ± {number(row['sd'])}" if is_number(row.get("sd")) else ""
        use, rank = number((row.get("test") or {}).get("image_use")), row.get("rank")
        lines.append(
            [
                method(row["method"]) + (" (reference)" if row["method"] == comparison.reference else ""),
                number(row.get("mean")) + sd,
                _percent(row.get("recovered")),
                f"{use}, about zero" if row.get("ignores_pictures") else use,
                _percent(row.get("recovered_image_use")),
                f"{rank:.3g}" if is_number(rank) else "–",
                _signed(row.get("difference")),
                p_value(row.get("p_holm")),
                f"{len(losses)}" + (f", {row['failed']} failed" if row.get("failed") else ""),
            ]
        )
    loss, use = (metric(key).title for key in ("test/loss", "test/image_use"))
    header = ["method", loss, "recovered", use, "of it recovered", "rank", "difference", "p (Holm)", "seeds"]
    best = [0 for row in rows[:1] if row["method"] not in BOUNDS and is_number(row.get("shared", row.get("mean")))]
    faint = [place for place, row in enumerate(rows) if row["method"] in BOUNDS or not is_number(row.get("mean"))]
    title = f"{name}: mean ± standard deviation over seeds, in the order of the seeds that all methods have"
    return Grid(title, header, lines, strong=best, faint=faint).without_empty()


def _percent(value: Any) -> str:
    return f"{value:.0%}" if is_number(value) else "–"


def _signed(value: Any) -> str:
    return f"{value:+.3f}" if is_number(value) else "–"


def _tuning(comparison: Comparison) -> Section:
    pictures = [one for name in comparison.settings for one in draw_grids(comparison, name)]
    rows = []
    for setting in comparison.settings:
        for name in comparison.methods:
            for place, (options, loss) in enumerate(sorted(comparison.tuning(setting, name), key=itemgetter(1))):
                told = ", ".join(f"{key}={value}" for key, value in options.items())
                rows.append([setting, method(name), told or "CONFIG", number(loss), "" if place else "best"])
    header = ["setting", "method", "options", metric("val/loss").title, ""]
    grid = Grid("All cells of the grids", header, rows, text_columns=3, folded=True)
    return Section("tuning", "Tuning", TUNING, pictures, [grid])


def _dynamics(comparison: Comparison) -> Section:
    pictures = [one for name in comparison.settings for key in DYNAMICS for one in draw_curves(comparison, name, key)]
    return Section("dynamics", "Interference and oscillation", HOW_THEY_STEP, pictures)


def _costs(comparison: Comparison) -> Section:
    def mean(runs: list[Result], *path: str) -> float | None:
        values = [value for run in runs if (value := run.measured(*path)) is not None]
        return fmean(values) if values else None

    def seconds_of(run: Result) -> float | None:
        return run.measured("seconds", "total")

    def megabytes(run: Result) -> float:
        return ((run.measured("bytes", "up") or 0) + (run.measured("bytes", "down") or 0)) / 1e6

    found = {one: runs for one in comparison.methods if (runs := comparison.of(None, one))}
    if not found:
        return Section("costs", "Cost")
    rows = []
    for name, runs in found.items():
        fastest = min(runs, key=lambda run: seconds_of(run) or math.inf)
        seconds = [duration(fastest.measured("seconds", phase)) for phase in ("total", "train", "aggregate")]
        traffic = [human(round(size)) if (size := mean(runs, "bytes", way)) else "–" for way in ("up", "down")]
        rows.append([method(name), *seconds, count(mean(runs, "samples_seen")), *traffic])
    keys = ("seconds/total", "seconds/train", "seconds/aggregate", "samples_seen", "bytes/up", "bytes/down")
    header = ["method", *(metric(key).title for key in keys)]
    faint = [place for place, one in enumerate(found) if one in BOUNDS]
    grid = Grid("Seconds of a method's fastest final run, means of all else", header, rows, faint=faint).without_empty()
    if cost := comparison.asked.get("features"):
        how = f"features, once for all runs ({count(cost['encoded'])} pictures encoded)"
        line = [how, duration(cost["seconds"]), *["–"] * (len(grid.header) - 2)]
        grid = grid._replace(rows=[*grid.rows, line])
    pictures = [
        *draw_costs(comparison, "time", "Wall time of a run", "seconds", seconds_of, min),
        *draw_costs(comparison, "traffic", "Traffic of a run, up and down", "MB", megabytes, fmean),
    ]
    several = len(_values(comparison, "device")) > 1
    apart = "Runs were on different devices: their seconds cannot be compared." if several else ""
    return Section("costs", "Cost", apart, pictures, [grid])


def _values(comparison: Comparison, key: str) -> Counter[str]:
    """What the records have under a key -> runs with it."""
    return Counter(str(one.record[key]) for one in comparison.results if one.record.get(key))


def _failed(comparison: Comparison) -> Section:
    rows = []
    for one in comparison.results:
        if not one.finished:
            error = str(one.record.get("error") or "no reason given").strip().splitlines()[0][:300]
            rows.append([one.cell.setting, method(one.cell.method), one.cell.stage, str(one.cell.seed), error])
    grid = Grid("Runs without a result", ["setting", "method", "stage", "seed", "error"], rows, text_columns=5)
    return Section("failed", "Failed runs", "They enter no mean.", grids=[grid])


def _asked(comparison: Comparison) -> Section:
    asked = {key: value for key, value in comparison.asked.items() if key not in ("command", "file", "config", "name")}
    command, config, file = (comparison.asked.get(key) for key in ("command", "config", "file"))
    listings = [Listing("Run it again", str(command))] if command else []
    if config:
        listings.append(Listing(f"Configuration of all runs{f' ({file})' if file else ''}", str(config), folded=True))
    if asked:
        asked["settings"] = [one["label"] for one in asked.get("settings", ())]  # their configs: mostly the one above
        text = json.dumps(asked, indent=2, ensure_ascii=False)
        listings.append(Listing("Methods, settings, seeds and grids", text, folded=True))
    values = next((dict(found) for one in comparison.results if (found := one.record.get("versions"))), {})
    for key in ("device", "commit"):
        found = _values(comparison, key).most_common()
        values[key] = "; ".join(f"{name} ({runs:,} runs)" if len(found) > 1 else name for name, runs in found) or None
    return Section("again", "What was asked", grids=[facts("Software and machine", values)], listings=listings)
