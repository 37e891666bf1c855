"""All sections of a comparison, in the order of reading."""

from __future__ import annotations

import json

from fedcmp.report.blocks import Fact, Grid, Listing, Page, Section
from fedcmp.report.comparison.costs import costs_section
from fedcmp.report.comparison.dynamics import dynamics_section
from fedcmp.report.comparison.reading import Comparison
from fedcmp.report.comparison.results import results_sections
from fedcmp.report.comparison.tuning import tuning_section
from fedcmp.report.formatting import count, duration, is_number, listed, method, number, p_value


def comparison_page(comparison: Comparison) -> Page:
    """What a comparison folder has to tell; parts that are missing are left out."""
    sections = [
        *_overall(comparison),
        *results_sections(comparison),
        *(section for make in (tuning_section, dynamics_section, costs_section) if (section := make(comparison))),
        *(section for section in (_failed(comparison), _asked(comparison)) if section),
    ]
    failed = sum(not cell.finished for cell in comparison.cells)
    blind = _blind(comparison)
    state = "failed" if failed else "unused" if blind else "finished" if comparison.table else "running"
    badge = f"{failed} cells failed" if failed > 1 else "one cell failed" if failed else state
    badge = {"running": "no table yet", "unused": "pictures not used"}.get(badge, badge)
    return Page(
        kind="Comparison",
        title=str(comparison.asked.get("name") or comparison.path.resolve().name),
        lead=_lead(comparison),
        state=state,
        badge=badge,
        facts=_facts(comparison),
        sections=sections,
        alarm=blind
        if comparison.table
        else "The table has not been written yet: the comparison goes on, or it was stopped.",
    )


def _blind(comparison: Comparison) -> str:
    """Which methods make no use of the pictures, by setting; empty without any. Bounds are no methods."""
    said = []
    for name, rows in comparison.table.get("settings", {}).items():
        blind = [
            row["method"] for row in rows if row.get("ignores_pictures") and row["method"] not in comparison.bounds
        ]
        said += [f"{name}: {listed([method(one) for one in blind])}"] if blind else []
    return f"The pictures do not matter: image use is about zero. {'; '.join(said)}." if said else ""


def _lead(comparison: Comparison) -> str:
    rivals = [method(one) for one in comparison.methods if one not in comparison.bounds]
    seeds = {str(cell.seed) for cell in comparison.final}
    bounds = [method(one) for one in comparison.methods if one in comparison.bounds]
    text = f"{listed(rivals, 12)} in {len(comparison.settings)} setting{'' if len(comparison.settings) == 1 else 's'}"
    text += f" with {len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    return text + (f"; {listed(bounds)} for comparison." if bounds else ".")


def _facts(comparison: Comparison) -> list[Fact]:
    cells = comparison.cells
    failed = sum(not cell.finished for cell in cells)
    tuned = sum(cell.stage == "tune" for cell in cells)
    with_bounds = any(one in comparison.bounds for one in comparison.methods)
    facts = [
        Fact("Methods", count(len(comparison.methods)), "bounds among them" if with_bounds else ""),
        Fact("Settings", count(len(comparison.settings))),
        Fact("Runs", count(len(cells)), f"{tuned:,} to tune, {len(cells) - tuned:,} final"),
    ]
    if failed:
        facts.append(Fact("Failed", count(failed), "listed below"))
    seconds = [(cell.line.get("seconds") or {}).get("total") for cell in cells]
    if known := [value for value in seconds if is_number(value)]:
        facts.append(Fact("Computing time", duration(sum(known)), "of all runs"))
    samples = [cell.line["samples_seen"] for cell in cells if is_number(cell.line.get("samples_seen"))]
    if samples:
        facts.append(Fact("Samples seen", count(sum(samples)), "by all runs"))
    return facts


def _overall(comparison: Comparison) -> list[Section]:
    rows = comparison.table.get("overall") or []
    if not rows or len(comparison.settings) < 2:
        return []
    ordered = sorted(rows, key=lambda row: row["mean_rank"] if is_number(row.get("mean_rank")) else float("inf"))
    lines = [
        [
            method(row["method"]),
            number(row.get("mean_rank"), 2),
            *(f"{row[key]:g}" if is_number(row.get(key)) else "–" for key in ("wins", "ties", "losses")),
            p_value(row.get("p_holm")) if row["method"] != comparison.reference else "–",
        ]
        for row in ordered
    ]
    header = ["method", "mean rank", "wins", "ties", "losses", "p (Holm)"]
    strong = [0] if is_number(ordered[0].get("mean_rank")) else []
    grid = Grid(f"Ranks, and seeds won against {method(comparison.reference)}", header, lines, strong=strong)
    return [Section("overall", "Over all settings", grids=[grid])]


def _failed(comparison: Comparison) -> Section | None:
    cells = [cell for cell in comparison.cells if not cell.finished]
    if not cells:
        return None
    rows = [
        [
            cell.setting,
            method(cell.method),
            cell.stage,
            cell.seed,
            _first_line(cell.line.get("error")),
        ]
        for cell in cells
    ]
    grid = Grid("Runs without a result", ["setting", "method", "stage", "seed", "error"], rows, text_columns=5)
    return Section(
        "failed", "Failed runs", ["They enter no mean. The tables say how many each method lacks."], grids=[grid]
    )


def _first_line(error: object) -> str:
    return str(error or "no reason given").strip().splitlines()[0][:300]


def _asked(comparison: Comparison) -> Section | None:
    asked, listings = comparison.asked, []
    if command := asked.get("command"):
        listings.append(Listing("Run it again", str(command)))
    if config := asked.get("config"):
        file = f" ({asked['file']})" if asked.get("file") else ""
        listings.append(Listing(f"Configuration of all runs{file}", str(config), folded=True))
    if rest := {key: value for key, value in asked.items() if key not in ("command", "config", "file", "name")}:
        rest["settings"] = [one["label"] for one in rest.get("settings", ())]  # their configs: mostly the one above
        text = json.dumps(rest, indent=2, ensure_ascii=False)
        listings.append(Listing("Methods, settings, seeds and grids", text, folded=True))
    first = next((cell for cell in comparison.cells if cell.line.get("versions")), None)
    grids = []
    if first is not None:
        facts = [[name, str(version)] for name, version in first.line["versions"].items()]
        facts += [[key, str(first.line[key])] for key in ("device", "commit") if first.line.get(key)]
        grids = [Grid("With what it ran", ["what", "value"], facts, text_columns=2)]
    if not listings and not grids:
        return None
    return Section("again", "What was asked", grids=grids, listings=listings)
