"""The figures of a comparison: every method has one colour and one kind of line in all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from statistics import fmean
from typing import Any

from fedcmp.report.blocks import Picture
from fedcmp.report.comparison.results import BOUNDS, TUNE, Comparison, Result
from fedcmp.report.figures import (
    COOL,
    DASHES,
    INK,
    PALETTE,
    Band,
    DotRow,
    Level,
    Line,
    draw_dots,
    draw_heat,
    draw_lines,
)
from fedcmp.report.formatting import identifier, is_number, method
from fedcmp.report.run.reading import series

ENERGY, COSINE, OSCILLATION = "aggregator/energy_kept", "aggregator/cosine", "aggregator/oscillation"
CURVES = {
    "val/loss": ("Validation loss over rounds", "nats per token"),
    ENERGY: ("Energy lost by averaging", "share"),
    OSCILLATION: ("Cosine between successive steps", "cosine"),
    COSINE: ("Cosine between clients' updates", "cosine"),
}


def style(comparison: Comparison, name: str) -> tuple[str, float, Any]:
    """Colour, width and dash of a method's lines: the bounds are ink, the reference is broad."""
    if name in BOUNDS:
        return INK, 1.3, (0, (4, 3)) if name == BOUNDS[0] else (0, (1.5, 1.5))
    if name == comparison.reference:
        return COOL, 2.4, "-"
    others = [one for one in comparison.methods if one not in (comparison.reference, *BOUNDS)]
    place, colours = others.index(name), PALETTE[1:]
    return colours[place % len(colours)], 1.3, DASHES[place // len(colours) % len(DASHES)]


def draw_curves(comparison: Comparison, setting: str, key: str) -> Picture | None:
    """A record of metrics.jsonl over rounds, of all methods that have it; None where none has.

    ``aggregator/energy_kept`` is shown as what is lost.
    """
    lines, bands = [], []
    for name in comparison.methods:
        values: dict[int, list[float]] = {}
        for result in comparison.of(setting, name):
            found = list(zip(*series(comparison.rounds(result), key), strict=True))
            for place, value in found[key == OSCILLATION :]:  # the first step has none before it
                values.setdefault(place, []).append(1.0 - value if key == ENERGY else value)
        if not values or (name == "local" and key == "val/loss"):  # its records are clients, not rounds
            continue
        colour, width, dash = style(comparison, name)
        x = sorted(values)
        lines.append(Line(method(name), x, [fmean(values[place]) for place in x], colour, width, dash))
        low, high = ([pick(values[place]) for place in x] for pick in (min, max))
        bands.append(Band(x, low, high, colour, 0.16 if name == comparison.reference else 0.1))
    if not lines:
        return None
    title, unit = CURVES[key]
    levels = [Level(0.0)] if key == OSCILLATION else []
    limits = (0.0, 1.0) if key == ENERGY else (None, None)
    figure = draw_lines(lines[::-1], unit, bands=bands, levels=levels, limits=limits)  # the reference on top
    title = title if key == "val/loss" else f"{title}: {setting}"
    caption = "Mean over seeds; bands reach from the least to the greatest."
    return Picture(f"{identifier(setting)}-{identifier(key)}", title, figure, f"{title}, setting {setting}.", caption)


def draw_losses(comparison: Comparison, setting: str) -> Picture | None:
    """The test losses of all seeds by method, in the order of the table."""
    rows = {row["method"]: (place, row) for place, row in enumerate(comparison.rows(setting))}
    found = {one: losses for one in comparison.methods if (losses := comparison.losses(setting, one))}
    ordered = sorted(found, key=lambda one: (rows[one][0] if one in rows else 0, fmean(found[one])))
    bounds = [(method(one), fmean(found[one])) for one in ordered if one in BOUNDS]
    dots: list[DotRow] = []
    for one in ordered:
        if one not in BOUNDS:
            spread = rows[one][1].get("sd") if one in rows else None
            mean, strong = fmean(found[one]), not dots
            dots.append(DotRow(method(one), found[one], style(comparison, one)[0], mean, spread, strong=strong))
    if not dots:
        return None
    caption = "Small dots: seeds; large: their mean. Bars: one standard deviation to each side. Dashed: bounds."
    alt = f"Test loss of each method in setting {setting}."
    figure = draw_dots(dots, "test loss, nats per token", bounds)
    return Picture(f"{identifier(setting)}-methods", "Test loss by method", figure, alt, caption)


def draw_domains(comparison: Comparison, setting: str) -> Picture | None:
    """The test loss of each method on each domain; None where there is one domain only."""
    means: dict[str, dict[str, float]] = {}
    for one in comparison.methods:
        values: dict[str, list[float]] = {}
        for result in comparison.of(setting, one):
            for domain, loss in (result.test.get("domains") or {}).items():
                values.setdefault(domain, []).append(loss)
        if values:
            means[one] = {domain: fmean(losses) for domain, losses in values.items()}
    columns = sorted({domain for row in means.values() for domain in row})
    if len(columns) < 2:
        return None
    table = [[row.get(domain) for domain in columns] for row in means.values()]
    figure = draw_heat(table, [method(one) for one in means], columns, show=lambda value: f"{value:.2f}")
    alt = f"Test loss of each method on each domain in setting {setting}."
    caption = "Means over seeds; a fuller colour is worse."
    return Picture(f"{identifier(setting)}-domains", "Test loss by domain", figure, alt, caption)


def draw_grids(comparison: Comparison, setting: str) -> list[Picture]:
    """The validation losses of all cells of the methods' grids, and over the option that most methods tune."""
    found = {one: runs for one in comparison.methods if (runs := comparison.of(setting, one, TUNE))}
    if not found:
        return []
    dots = []
    for one, runs in found.items():
        losses = [run.record["val_loss"] for run in runs]
        dots.append(DotRow(method(one), losses, style(comparison, one)[0], ringed=min(losses)))
    alt = f"Validation loss of the grid cells of each method in setting {setting}."
    figure = draw_dots(dots, "validation loss, nats per token")
    picture = Picture(f"{identifier(setting)}-tuning", f"Grid of each method: {setting}", figure, alt)
    votes = Counter(key for runs in found.values() for key in {key for run in runs for key in _numbers(run)})
    if not votes:
        return [picture]
    return [_draw_option(comparison, setting, found, votes.most_common(1)[0][0]), picture]


def _draw_option(comparison: Comparison, setting: str, found: dict[str, list[Result]], key: str) -> Picture:
    lines, ticks = [], set[float]()
    for one, runs in found.items():
        best: dict[float, float] = {}
        for run in runs:
            if key in _numbers(run):
                value, loss = run.cell.options[key], run.record["val_loss"]
                best[value] = min(loss, best.get(value, loss))
        if best:
            lines.append(Line(method(one), sorted(best), [best[x] for x in sorted(best)], *style(comparison, one)))
            ticks |= best.keys()
    name = "learning rate" if key == "optimizer.lr" else key
    unit = "validation loss, nats per token"
    figure = draw_lines(lines[::-1], unit, x_label=name, ticks=sorted(ticks))
    alt, caption = (
        f"Validation loss over {name} in setting {setting}.",
        f"At each {name} the best of the other options.",
    )
    return Picture(f"{identifier(setting)}-landscape", f"Loss over the {name}: {setting}", figure, alt, caption)


def _numbers(run: Result) -> list[str]:
    return [key for key, value in run.cell.options.items() if is_number(value)]


def draw_costs(
    comparison: Comparison, name: str, title: str, unit: str, measure: Callable[[Result], float | None]
) -> Picture | None:
    """What the final runs of each method cost, the cheapest method first; None where nothing was measured."""
    rows = []
    for one in comparison.methods:
        values = [value for run in comparison.of(None, one) if (value := measure(run))]
        if values:
            rows.append(DotRow(method(one), values, style(comparison, one)[0], fmean(values)))
    if not rows:
        return None
    rows.sort(key=lambda row: row.mean or 0.0)
    figure = draw_dots(rows, unit, from_zero=True)
    return Picture(f"cost-{name}", title, figure, f"{title}, by method.", "Small dots: runs; large: their mean.")
