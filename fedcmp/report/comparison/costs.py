"""What each method costs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from fedcmp.report.blocks import Grid, Picture, Section, without_empty
from fedcmp.report.comparison.look import hue
from fedcmp.report.comparison.reading import Cell, Comparison
from fedcmp.report.figures import DotRow, draw_dots
from fedcmp.report.formatting import count, duration, human, is_number, method


def costs_section(comparison: Comparison) -> Section | None:
    """Means over all finished final cells of a method; None without one."""
    found = {
        one: [cell for cell in comparison.final if cell.method == one and cell.finished] for one in comparison.methods
    }
    found = {one: cells for one, cells in found.items() if cells}
    if not found:
        return None
    rows = []
    for one, cells in found.items():
        seconds, traffic = _mean(cells, _phase("total")), [_mean(cells, _bytes(way)) for way in ("up", "down")]
        rows.append(
            [
                method(one),
                duration(seconds),
                duration(_mean(cells, _phase("train"))),
                duration(_mean(cells, _phase("aggregate"))),
                count(_mean(cells, lambda cell: cell.line.get("samples_seen"))),
                *(human(round(size)) if size else "–" for size in traffic),
            ]
        )
    header = ["method", "wall time", "training", "aggregation", "samples", "clients to server", "server to clients"]
    header, rows = without_empty(header, rows)
    faint = [place for place, one in enumerate(found) if one in comparison.bounds]
    if cost := comparison.asked.get("features"):
        how = f"{count(cost['encoded'])} pictures" if cost["encoded"] else "all in a cache already"
        rows.append([f"features, once for all runs ({how})", duration(cost["seconds"]), *["–"] * (len(header) - 2)])
    grids = [Grid("Means over all final runs of a method", header, rows, faint=faint)]
    pictures = [picture for picture in (_time(comparison, found), _traffic(comparison, found)) if picture]
    return Section("costs", "Cost", pictures=pictures, grids=grids)


def _time(comparison: Comparison, found: dict[str, list[Cell]]) -> Picture | None:
    return _picture(comparison, found, _phase("total"), "time", "Wall time of a run", "seconds", duration)


def _traffic(comparison: Comparison, found: dict[str, list[Cell]]) -> Picture | None:
    def megabytes(cell: Cell) -> Any:
        sizes = [_bytes(way)(cell) for way in ("up", "down")]
        return sum(sizes) / 1e6 if all(is_number(size) for size in sizes) and sum(sizes) else None

    return _picture(
        comparison, found, megabytes, "traffic", "Traffic of a run, up and down", "MB", lambda value: f"{value:,.1f} MB"
    )


def _picture(
    comparison: Comparison,
    found: dict[str, list[Cell]],
    measure: Callable[[Cell], Any],
    name: str,
    title: str,
    unit: str,
    show: Callable[[float], str],
) -> Picture | None:
    rows = []
    for one, cells in found.items():
        values = [float(value) for cell in cells if is_number(value := measure(cell))]
        if values:
            rows.append(DotRow(method(one), values, hue(comparison, one), fmean(values)))
    if not rows:
        return None
    rows.sort(key=lambda row: row.mean or 0.0)
    alt = f"{title}, mean: " + ", ".join(f"{row.name} {show(row.mean or 0.0)}" for row in rows) + "."
    return Picture(
        f"cost-{name}", title, draw_dots(rows, unit, from_zero=True), alt, "Small dots: runs; large: their mean."
    )


def _mean(cells: list[Cell], measure: Callable[[Cell], Any]) -> float | None:
    values = [float(value) for cell in cells if is_number(value := measure(cell))]
    return fmean(values) if values else None


def _phase(name: str) -> Callable[[Cell], Any]:
    return lambda cell: (cell.line.get("seconds") or {}).get(name)


def _bytes(way: str) -> Callable[[Cell], Any]:
    return lambda cell: (cell.line.get("bytes") or {}).get(way)
