"""The figures of a comparison: every method has one colour and one kind of line in all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import Any

from fedcmp.measures import NATS
from fedcmp.report.blocks import Picture, curves
from fedcmp.report.comparison.results import BOUNDS, Comparison, Result
from fedcmp.report.figures import COOL, DASHES, INK, PALETTE, DotRow, Line, draw_dots, draw_heat
from fedcmp.report.formatting import identifier, is_number, method
from fedcmp.report.run.reading import series

DYNAMICS = ENERGY, COSINE, OSCILLATION = "aggregator/energy_kept", "aggregator/cosine", "aggregator/oscillation"
CURVES = {
    "val/loss": ("Validation loss over rounds", NATS),
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


def draw_curves(comparison: Comparison, setting: str, key: str) -> list[Picture]:
    """A record of metrics.jsonl over rounds, of all methods that have it.

    ``aggregator/energy_kept`` is shown as what is lost.
    """
    lines = []
    for name in comparison.methods:
        values = defaultdict[int, list[float]](list)
        for result in comparison.of(setting, name):
            found = list(zip(*series(comparison.rounds(result), key), strict=True))
            for place, value in found[key == OSCILLATION :]:  # the first step has none before it
                values[place].append(1.0 - value if key == ENERGY else value)
        if values and not (name == "local" and key == "val/loss"):  # its records are clients, not rounds
            x = sorted(values)
            low, mean, high = ([pick(values[place]) for place in x] for pick in (min, fmean, max))
            band = low, high, 0.16 if name == comparison.reference else 0.1
            lines.append(Line(method(name), x, mean, *style(comparison, name), band=band))
    title, unit = CURVES[key]
    title += f": {setting}" * (key != "val/loss")
    name = f"{identifier(setting)}-{identifier(key)}"
    caption = "Mean over seeds; bands reach from the least to the greatest."
    limits = (0.0, 1.0) if key == ENERGY else (None, None)
    level = (0.0, "") if key == OSCILLATION else None
    alt, lines = f"{title}, setting {setting}.", lines[::-1]  # the reference on top
    return curves(name, title, lines, unit, caption, alt, level=level, limits=limits)


def draw_losses(comparison: Comparison, setting: str) -> list[Picture]:
    """The test losses of all seeds by method, in the order of the table."""
    rows = {row["method"]: (place, row) for place, row in enumerate(comparison.rows(setting))}
    found = {one: losses for one in comparison.methods if (losses := comparison.losses(setting, one))}
    ordered = sorted(found, key=lambda one: (rows[one][0] if one in rows else 0, fmean(found[one])))
    bounds = [(method(one), fmean(found[one])) for one in ordered if one in BOUNDS]
    dots: list[DotRow] = []
    for one in ordered:
        if one not in BOUNDS:
            spread, hue = rows[one][1].get("sd") if one in rows else None, style(comparison, one)[0]
            dots.append(DotRow(method(one), found[one], hue, fmean(found[one]), spread, strong=not dots))
    if not dots:
        return []
    caption = "Small dots: seeds; large: their mean. Bars: one standard deviation to each side."
    caption += " Dashed: bounds." * bool(bounds)
    figure, alt = draw_dots(dots, f"test loss, {NATS}", bounds), f"Test loss of each method in setting {setting}."
    return [Picture(f"{identifier(setting)}-methods", "Test loss by method", figure, caption, alt)]


def draw_domains(comparison: Comparison, setting: str) -> list[Picture]:
    """The test loss of each method on each domain, if there are several."""
    means: dict[str, dict[str, float]] = {}
    for one in comparison.methods:
        values = defaultdict[str, list[float]](list)
        for result in comparison.of(setting, one):
            for domain, loss in (result.test.get("domains") or {}).items():
                values[domain].append(loss)
        if values:
            means[one] = {domain: fmean(losses) for domain, losses in values.items()}
    columns = sorted({domain for row in means.values() for domain in row})
    if len(columns) < 2:
        return []
    table = [[row.get(domain) for domain in columns] for row in means.values()]
    figure = draw_heat(table, [method(one) for one in means], columns, show=lambda value: f"{value:.2f}")
    alt = f"Test loss of each method on each domain in setting {setting}."
    name, caption = f"{identifier(setting)}-domains", "Means over seeds; darker is worse."
    return [Picture(name, "Test loss by domain", figure, caption, alt)]


def draw_grids(comparison: Comparison, setting: str) -> list[Picture]:
    """The validation losses of all cells of the methods' grids, and over the option that most methods tune."""
    found = {one: tried for one in comparison.methods if (tried := comparison.tuning(setting, one))}
    if not found:
        return []
    dots = []
    for one, tried in found.items():
        losses = [loss for _, loss in tried]
        chosen = len(losses) >= len(comparison.asked.get("grid", {}).get(setting, {}).get(one, ()))
        dots.append(DotRow(method(one), losses, style(comparison, one)[0], ringed=min(losses) if chosen else None))
    unit, title = f"validation loss, {NATS}", f"Grid of each method: {setting}"
    alt = f"Validation loss of the grid cells of each method in setting {setting}."
    pictures = [Picture(f"{identifier(setting)}-tuning", title, draw_dots(dots, unit), alt=alt)]
    votes = Counter[str]()
    for tried in found.values():
        votes.update(sorted({key for options, _ in tried for key in options if is_number(options[key])}))
    if not votes:
        return pictures
    lines, option = [], votes.most_common(1)[0][0]
    for one, tried in found.items():
        best: dict[float, float] = {}
        for options, loss in tried:
            if is_number(value := options.get(option)):
                best[value] = min(loss, best.get(value, loss))
        lines.append(Line(method(one), sorted(best), [best[x] for x in sorted(best)], *style(comparison, one)))
    ticks = sorted({x for line in lines for x in line.x})
    name = "learning rate" if option == "optimizer.lr" else option
    title, caption = f"Loss over the {name}: {setting}", f"At each {name} the best of the other options."
    alt, place = f"Validation loss over {name} in setting {setting}.", f"{identifier(setting)}-landscape"
    return [*curves(place, title, lines[::-1], unit, caption, alt, x_label=name, ticks=ticks), *pictures]


def draw_costs(
    comparison: Comparison,
    name: str,
    title: str,
    unit: str,
    measure: Callable[[Result], float | None],
    of: Callable[[list[float]], float],
) -> list[Picture]:
    """What the final runs of each method cost, the cheapest method first.

    ``of`` is `min` for seconds: most of what a run takes above the fastest is start-up and what else the machine did.
    """
    rows = []
    for one in comparison.methods:
        values = [value for run in comparison.of(None, one) if (value := measure(run))]
        if values:
            rows.append(DotRow(method(one), values, style(comparison, one)[0], of(values)))
    if not rows:
        return []
    rows.sort(key=lambda row: row.mean or 0.0)
    large = "the fastest; start-up and what else the machine did count" if of is min else "their mean"
    figure, caption = draw_dots(rows, unit, from_zero=True), f"Small dots: runs; large: {large}."
    return [Picture(f"cost-{name}", title, figure, caption, f"{title}, by method.")]
