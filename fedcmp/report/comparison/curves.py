"""Curves of all methods in one setting: means over seeds, with what lies between the least and the greatest."""

from __future__ import annotations

from statistics import fmean

from fedcmp.report.blocks import Picture
from fedcmp.report.comparison.look import dash, hue, width
from fedcmp.report.comparison.reading import Comparison
from fedcmp.report.figures import Band, Level, Line, draw_lines
from fedcmp.report.formatting import identifier, method, number
from fedcmp.report.run.reading import series

_TITLES = {
    "val/loss": ("Validation loss over rounds", "nats per token"),
    "aggregator/energy_kept": ("Energy lost by averaging", "share"),
    "aggregator/oscillation": ("Cosine between successive steps", "cosine"),
    "aggregator/cosine": ("Cosine between clients' updates", "cosine"),
}


def curves(comparison: Comparison, setting: str, key: str) -> Picture | None:
    """One record of metrics.jsonl over rounds, for all methods whose cells have it; None where none has.

    Args:
        setting: of the comparison.
        key: of the record; ``aggregator/energy_kept`` is shown as what is lost.
    """
    lines, bands, said = [], [], []
    few = len(comparison.methods) <= 4
    for one in comparison.methods:
        if one == "local" and key == "val/loss":  # its records are clients, not rounds
            continue
        rounds, low, mean, high = _over_seeds(comparison, setting, one, key)
        if not rounds:
            continue
        colour = hue(comparison, one)
        lines.append(
            Line(method(one), rounds, mean, colour, width(comparison, one), dash(comparison, one))
        )  # fmt: skip
        bands.append(Band(rounds, low, high, colour, 0.16 if one == comparison.reference or few else 0.07))
        said.append(f"{method(one)} {number(mean[-1])}")
    if not lines:
        return None
    title, unit = _TITLES[key]
    levels = [Level(0.0)] if key == "aggregator/oscillation" else []
    limits = (0.0, 1.0) if key == "aggregator/energy_kept" else (None, None)
    figure = draw_lines(list(reversed(lines)), unit, bands=bands, levels=levels, limits=limits)  # the reference on top
    alt = f"{title}, setting {setting}; at the end: {', '.join(said)}."
    caption = "Mean over seeds; bands reach from the least to the greatest."
    return Picture(f"{identifier(setting)}-{identifier(key)}", title, figure, alt, caption)


def _over_seeds(
    comparison: Comparison, setting: str, method: str, key: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    values: dict[int, list[float]] = {}
    for cell in comparison.of(setting, method):
        rounds, found = series(comparison.records(cell), key)
        pairs = list(zip(rounds, found, strict=True))
        if key == "aggregator/oscillation":
            pairs = pairs[1:]  # the first step has none before it
        for place, value in pairs:
            values.setdefault(place, []).append(1.0 - value if key == "aggregator/energy_kept" else value)
    rounds = sorted(values)
    columns = [values[place] for place in rounds]
    return rounds, [min(one) for one in columns], [fmean(one) for one in columns], [max(one) for one in columns]
