"""The results by setting: a table, dots of the seeds, curves, domains."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from fedcmp.report.blocks import Grid, Picture, Section, without_empty
from fedcmp.report.comparison.curves import curves
from fedcmp.report.comparison.look import hue
from fedcmp.report.comparison.reading import Comparison, standing
from fedcmp.report.figures import DotRow, draw_dots, draw_heat
from fedcmp.report.formatting import identifier, is_number, method, number, p_value

LOSS = "test loss, nats per token"
READING = (
    "Bold: the method with the lowest loss on the seeds that all have. Recovered: the share of the way from clients "
    "alone to centralized training, of the loss and of image use, the loss that the right pictures save. p: against "
    "the reference."
)


def results_sections(comparison: Comparison) -> list[Section]:
    """One section per setting."""
    return [section for name in comparison.settings if (section := _setting(comparison, name))]


def _setting(comparison: Comparison, name: str) -> Section | None:
    pictures = [_dots(comparison, name), curves(comparison, name, "val/loss"), _domains(comparison, name)]
    grids = [grid for grid in (_table(comparison, name),) if grid]
    found = [picture for picture in pictures if picture]
    if not found and not grids:
        return None
    return Section(f"setting-{identifier(name)}", f"Setting: {name}", [READING], pictures=found, grids=grids)


def _table(comparison: Comparison, name: str) -> Grid | None:
    """None before the table of the comparison was written."""
    rows = comparison.table.get("settings", {}).get(name)
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: (row["method"] in comparison.bounds, *standing(row)))
    lines, faint = [], []
    for place, row in enumerate(ordered):
        failed, seeds = int(row.get("failed") or 0), len(comparison.losses(name, row["method"]))
        seeds = seeds or len(row.get("seeds") or [])
        test = row.get("test") or {}
        sd = f" ± {number(row['sd'])}" if is_number(row.get("sd")) else ""
        lines.append(
            [
                _name(comparison, row["method"]),
                f"{number(row.get('mean'))}{sd}",
                _share(row.get("recovered")),
                number(test.get("image_use")) + (", about zero" if row.get("ignores_pictures") else ""),
                _share(row.get("recovered_image_use")),
                _rank(row.get("rank")),
                _p(row, comparison),
                f"{seeds}" + (f", {failed} failed" if failed else ""),
            ]
        )
        if row["method"] in comparison.bounds or not is_number(row.get("mean")):
            faint.append(place)
    header = ["method", "test loss", "recovered", "image use", "of it recovered", "rank", "p (Holm)", "seeds"]
    header, lines = without_empty(header, lines)
    strong = [0] if ordered[0]["method"] not in comparison.bounds and not standing(ordered[0])[0] else []
    title = f"{name}: mean ± standard deviation over seeds, in the order of the seeds that all methods have"
    return Grid(title, header, lines, strong=strong, faint=faint)


def _name(comparison: Comparison, one: str) -> str:
    return f"{method(one)} (reference)" if one == comparison.reference else method(one)


def _share(value: Any) -> str:
    return f"{value:.0%}" if is_number(value) else "–"


def _p(row: Mapping[str, Any], comparison: Comparison) -> str:
    return "–" if row["method"] == comparison.reference else p_value(row.get("p_holm"))


def _rank(value: Any) -> str:
    """A mean of ranks; whole ones without decimals."""
    return number(value, 0 if is_number(value) and value == int(value) else 2)


def _dots(comparison: Comparison, name: str) -> Picture | None:
    rows, bounds = [], []
    tested = {row["method"]: row for row in comparison.table.get("settings", {}).get(name, [])}
    found = {one: losses for one in comparison.methods if (losses := comparison.losses(name, one))}
    for one in sorted(found, key=lambda one: standing(tested.get(one) or {"mean": fmean(found[one])})):
        losses = found[one]
        if one in comparison.bounds:
            bounds.append((method(one), fmean(losses)))
            continue
        sd = tested.get(one, {}).get("sd")
        rows.append(DotRow(method(one), losses, hue(comparison, one), fmean(losses), sd if is_number(sd) else None))
    if not rows:
        return None
    rows[0] = rows[0]._replace(strong=True)
    alt = f"Test loss in setting {name}: " + ", ".join(f"{row.name} {number(row.mean)}" for row in rows) + "."
    alt += "".join(f" {bound}: {number(value)}." for bound, value in bounds)
    bars = " Bars: one standard deviation to each side." if any(row.spread for row in rows) else ""
    caption = f"Small dots: seeds; large: their mean.{bars}" + (" Dashed: bounds." if bounds else "")
    figure = draw_dots(rows, LOSS, bounds)
    return Picture(f"{identifier(name)}-methods", "Test loss by method", figure, alt, caption)


def _domains(comparison: Comparison, name: str) -> Picture | None:
    means: dict[str, dict[str, float]] = {}
    for one in comparison.methods:
        found = [(cell.line.get("test") or {}).get("domains") or {} for cell in comparison.of(name, one)]
        keys = sorted({key for losses in found for key in losses})
        known = {key: [losses[key] for losses in found if is_number(losses.get(key))] for key in keys}
        if any(known.values()):
            means[one] = {key: fmean(values) for key, values in known.items() if values}
    columns = sorted({key for row in means.values() for key in row})
    if len(columns) < 2 or not means:
        return None
    values = [[row.get(key) for key in columns] for row in means.values()]
    figure = draw_heat(values, [method(one) for one in means], columns, show=lambda value: f"{value:.2f}")
    worst = {one: max(row, key=lambda key: row[key]) for one, row in means.items()}
    alt = "Test loss of each method on each domain; the worst: "
    alt += ", ".join(f"{method(one)} {worst[one]} {number(means[one][worst[one]], 2)}" for one in means) + "."
    return Picture(
        f"{identifier(name)}-domains", "Test loss by domain", figure, alt, "Means over seeds; a fuller colour is worse."
    )
