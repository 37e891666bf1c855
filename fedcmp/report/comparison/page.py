"""The page of a comparison: all its sections, in the order of reading."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from fedcmp.report.blocks import Fact, Grid, Listing, Page, Section, without_empty
from fedcmp.report.comparison.pictures import (
    COSINE,
    ENERGY,
    OSCILLATION,
    draw_costs,
    draw_curves,
    draw_domains,
    draw_grids,
    draw_losses,
)
from fedcmp.report.comparison.results import BOUNDS, TUNE, Comparison, Result
from fedcmp.report.formatting import count, duration, human, identifier, is_number, listed, method, number, p_value

READING = (
    "Bold: the method with the lowest loss on the seeds that all have. Recovered: the share of the way from clients "
    "alone to centralized training, of the loss and of image use, the loss that the right pictures save. p: against "
    "the reference."
)
TUNING = (
    "Each dot is one cell of a method's grid; the ring is its best, which the final runs use. Settings are chosen on "
    "the validation samples, results are those of the test samples."
)
DYNAMICS = (
    "Energy is lost where clients' updates point apart and the mean takes away what each adds. A cosine below 0 "
    "between two successive server steps means that the second one swings back."
)


def comparison_page(comparison: Comparison) -> Page:
    """What a comparison folder shows; parts that are missing are left out."""
    failed = sum(not one.finished for one in comparison.results)
    blind = _methods_without_pictures(comparison)
    state, badge = "finished", "finished"
    if failed:
        state, badge = "failed", "one cell failed" if failed == 1 else f"{failed} cells failed"
    elif blind:
        state, badge = "unused", "pictures not used"
    elif not comparison.table:
        state, badge = "running", "no table yet"
    sections = [
        _overall(comparison),
        *(_setting(comparison, name) for name in comparison.settings),
        _tuning(comparison),
        _dynamics(comparison),
        _costs(comparison),
        _failed(comparison),
        _asked(comparison),
    ]
    return Page(
        kind="Comparison",
        title=comparison.name,
        lead=_lead(comparison),
        state=state,
        badge=badge,
        facts=_facts(comparison, failed),
        sections=[one for one in sections if one],
        alarm=blind if comparison.table else "No table yet: the comparison goes on, or it was stopped.",
    )


def _methods_without_pictures(comparison: Comparison) -> str:
    found = {
        name: [method(row["method"]) for row in comparison.rows(name) if _ignores_pictures(row)]
        for name in comparison.settings
    }
    text = "; ".join(f"{name}: {listed(blind)}" for name, blind in found.items() if blind)
    return f"The pictures do not matter: image use is about zero. {text}." if text else ""


def _ignores_pictures(row: dict[str, Any]) -> bool:
    return bool(row.get("ignores_pictures")) and row["method"] not in BOUNDS


def _lead(comparison: Comparison) -> str:
    rivals, bounds = (
        [method(one) for one in comparison.methods if (one in BOUNDS) == bound] for bound in (False, True)
    )
    seeds = {one.cell.seed for one in comparison.results if one.cell.stage != TUNE}
    text = f"{listed(rivals, 12)}; settings: {len(comparison.settings)}; seeds: {len(seeds)}"
    return text + (f"; {listed(bounds)} for comparison." if bounds else ".")


def _facts(comparison: Comparison, failed: int) -> list[Fact]:
    results = comparison.results
    tuned = sum(one.cell.stage == TUNE for one in results)
    facts = [
        Fact("Methods", count(len(comparison.methods)), "bounds among them" if "local" in comparison.methods else ""),
        Fact("Settings", count(len(comparison.settings))),
        Fact("Runs", count(len(results)), f"{tuned:,} to tune, {len(results) - tuned:,} final"),
    ]
    facts += [Fact("Failed", count(failed), "listed below")] if failed else []
    if seconds := sum(one.measured("seconds", "total") or 0 for one in results):
        facts.append(Fact("Computing time", duration(seconds), "of all runs"))
    if samples := sum(one.measured("samples_seen") or 0 for one in results):
        facts.append(Fact("Samples seen", count(samples), "by all runs"))
    return facts


def _overall(comparison: Comparison) -> Section | None:
    rows = comparison.table.get("overall") or []
    if not rows or len(comparison.settings) < 2:
        return None
    lines = [
        [
            method(row["method"]),
            number(row.get("mean_rank"), 2),
            *(count(row.get(key)) for key in ("wins", "ties", "losses")),
            p_value(row.get("p_holm")),
        ]
        for row in rows
    ]
    header = ["method", "mean rank", "wins", "ties", "losses", "p (Holm)"]
    strong = [0] if is_number(rows[0].get("mean_rank")) else []
    grid = Grid(f"Ranks, and seeds won against {method(comparison.reference)}", header, lines, strong=strong)
    return Section("overall", "Over all settings", grids=[grid])


def _setting(comparison: Comparison, name: str) -> Section | None:
    found = (
        draw_losses(comparison, name),
        draw_curves(comparison, name, "val/loss"),
        draw_domains(comparison, name),
    )
    pictures, grids = [one for one in found if one], _table(comparison, name)
    if not pictures and not grids:
        return None
    return Section(f"setting-{identifier(name)}", f"Setting: {name}", [READING], pictures, grids)


def _table(comparison: Comparison, name: str) -> list[Grid]:
    rows = sorted(comparison.rows(name), key=lambda row: row["method"] in BOUNDS)
    if not rows:
        return []
    lines = []
    for row in rows:
        losses = comparison.losses(name, row["method"]) or row.get("seeds") or []
        sd = f" ± {number(row['sd'])}" if is_number(row.get("sd")) else ""
        use = number((row.get("test") or {}).get("image_use"))
        rank = row.get("rank")
        lines.append(
            [
                method(row["method"]) + (" (reference)" if row["method"] == comparison.reference else ""),
                number(row.get("mean")) + sd,
                _percent(row.get("recovered")),
                f"{use}, about zero" if row.get("ignores_pictures") else use,
                _percent(row.get("recovered_image_use")),
                f"{rank:.3g}" if is_number(rank) else "–",
                p_value(row.get("p_holm")),
                f"{len(losses)}" + (f", {row['failed']} failed" if row.get("failed") else ""),
            ]
        )
    header = ["method", "test loss", "recovered", "image use", "of it recovered", "rank", "p (Holm)", "seeds"]
    header, lines = without_empty(header, lines)
    best = rows[0]["method"] not in BOUNDS and is_number(rows[0].get("shared", rows[0].get("mean")))
    faint = [place for place, row in enumerate(rows) if row["method"] in BOUNDS or not is_number(row.get("mean"))]
    title = f"{name}: mean ± standard deviation over seeds, in the order of the seeds that all methods have"
    return [Grid(title, header, lines, strong=[0] if best else [], faint=faint)]


def _percent(value: Any) -> str:
    return f"{value:.0%}" if is_number(value) else "–"


def _tuning(comparison: Comparison) -> Section | None:
    pictures = [one for name in comparison.settings for one in draw_grids(comparison, name)]
    if not pictures:
        return None
    rows = []
    for setting in comparison.settings:
        for name in comparison.methods:
            runs = sorted(comparison.of(setting, name, TUNE), key=lambda one: one.record["val_loss"])
            for place, run in enumerate(runs):
                options = ", ".join(f"{key}={value}" for key, value in run.cell.options.items())
                best = "" if place else "best"
                rows.append([setting, method(name), options or "CONFIG", number(run.record["val_loss"]), best])
    header = ["setting", "method", "options", "validation loss", ""]
    grids = [Grid("All cells of the grids", header, rows, text_columns=3, folded=True)]
    return Section("tuning", "Tuning", [TUNING], pictures, grids)


def _dynamics(comparison: Comparison) -> Section | None:
    found = [
        draw_curves(comparison, name, key) for name in comparison.settings for key in (ENERGY, COSINE, OSCILLATION)
    ]
    pictures = [one for one in found if one]
    return Section("dynamics", "Interference and oscillation", [DYNAMICS], pictures) if pictures else None


def _costs(comparison: Comparison) -> Section | None:
    found = {one: runs for one in comparison.methods if (runs := comparison.of(None, one))}
    if not found:
        return None

    def mean(runs: list[Result], *path: str) -> float | None:
        values = [value for run in runs if (value := run.measured(*path)) is not None]
        return fmean(values) if values else None

    def megabytes(run: Result) -> float:
        return ((run.measured("bytes", "up") or 0) + (run.measured("bytes", "down") or 0)) / 1e6

    rows = []
    for name, runs in found.items():
        seconds = [duration(mean(runs, "seconds", phase)) for phase in ("total", "train", "aggregate")]
        traffic = [human(round(size)) if (size := mean(runs, "bytes", way)) else "–" for way in ("up", "down")]
        rows.append([method(name), *seconds, count(mean(runs, "samples_seen")), *traffic])
    header = ["method", "wall time", "training", "aggregation", "samples", "clients to server", "server to clients"]
    header, rows = without_empty(header, rows)
    faint = [place for place, one in enumerate(found) if one in BOUNDS]
    if cost := comparison.asked.get("features"):
        how = f"features, once for all runs ({count(cost['encoded'])} pictures encoded)"
        rows.append([how, duration(cost["seconds"]), *["–"] * (len(header) - 2)])
    pictures = [
        draw_costs(comparison, "time", "Wall time of a run", "seconds", lambda run: run.measured("seconds", "total")),
        draw_costs(comparison, "traffic", "Traffic of a run, up and down", "MB", megabytes),
    ]
    grid = Grid("Means over all final runs of a method", header, rows, faint=faint)
    return Section("costs", "Cost", pictures=[one for one in pictures if one], grids=[grid])


def _failed(comparison: Comparison) -> Section | None:
    failed = [one for one in comparison.results if not one.finished]
    if not failed:
        return None
    rows = []
    for one in failed:
        error = str(one.record.get("error") or "no reason given").strip().splitlines()[0][:300]
        rows.append([one.cell.setting, method(one.cell.method), one.cell.stage, str(one.cell.seed), error])
    grid = Grid("Runs without a result", ["setting", "method", "stage", "seed", "error"], rows, text_columns=5)
    return Section("failed", "Failed runs", ["They enter no mean."], grids=[grid])


def _asked(comparison: Comparison) -> Section | None:
    asked, listings, grids = dict(comparison.asked), [], []
    if command := asked.pop("command", None):
        listings.append(Listing("Run it again", str(command)))
    file = asked.pop("file", None)
    if config := asked.pop("config", None):
        listings.append(Listing(f"Configuration of all runs{f' ({file})' if file else ''}", str(config), folded=True))
    asked.pop("name", None)
    if asked:
        asked["settings"] = [one["label"] for one in asked.get("settings", ())]  # their configs: mostly the one above
        text = json.dumps(asked, indent=2, ensure_ascii=False)
        listings.append(Listing("Methods, settings, seeds and grids", text, folded=True))
    first = next((one.record for one in comparison.results if one.record.get("versions")), None)
    if first is not None:
        facts = [[name, str(version)] for name, version in first["versions"].items()]
        facts += [[key, str(first[key])] for key in ("device", "commit") if first.get(key)]
        grids = [Grid("Software and machine", ["what", "value"], facts, text_columns=2)]
    return Section("again", "What was asked", grids=grids, listings=listings) if listings or grids else None
