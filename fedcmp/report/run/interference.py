"""How clients stand to each other, and what averaging costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedcmp.report.blocks import Picture, Section
from fedcmp.report.drawing.canvas import COOL, INK, WARM, colour
from fedcmp.report.drawing.heat import draw_heat
from fedcmp.report.drawing.lines import Level, Line, draw_lines
from fedcmp.report.run.reading import Run
from fedcmp.report.words import layer, number


def interference_section(run: Run) -> Section | None:
    """None where the method recorded nothing of it."""
    pictures = [picture for picture in (_energy(run), _cosines(run), _pairs(run), _tau(run)) if picture]
    if not pictures:
        return None
    text = (
        "Clients interfere where their updates point apart: what one adds the mean takes away again. A cosine of 1 "
        "means that two clients ask for the same step, 0 that they ask for unrelated ones, below 0 for opposite ones."
    )
    return Section("interference", "Interference between clients", [text], pictures)


def _energy(run: Run) -> Picture | None:
    rounds, kept = run.series("aggregator/energy_kept")
    if not kept:
        return None
    lost = [1.0 - value for value in kept]
    _, effective = run.series("aggregator/K_eff")
    levels = []
    if effective and (apart := 1 - 1 / effective[-1]) > 0:
        levels = [Level(apart, "if unrelated")]
    figure = draw_lines([Line("lost", rounds, lost, WARM, 2.0)], "share", levels=levels, limits=(0.0, 1.0))
    alt = f"Share of the clients' energy that the mean loses: {number(lost[0])} in the first round, "
    alt += f"{number(lost[-1])} in the last, {number(sum(lost) / len(lost))} on average."
    caption = "1 − |mean of updates|² / mean of |updates|². Dashed: what is lost where all clients are orthogonal."
    return Picture("energy-lost", "Energy lost by averaging", figure, alt, caption)


def _cosines(run: Run) -> Picture | None:
    rounds, mean = run.series("aggregator/cosine")
    if not mean:
        return None
    lines = [Line("mean", rounds, mean, COOL, 2.0)]
    x, least = run.series("aggregator/cosine_min")
    if least:
        lines.append(Line("least alike", x, least, INK, width=1.0, dash=(0, (2, 2)), alpha=0.8))
    figure = draw_lines(lines, "cosine", levels=[Level(0.0)] if min(least, default=0.0) < 0 else [])
    alt = f"Mean cosine between two clients' updates: {number(mean[0])} at first, {number(mean[-1])} in the last round."
    return Picture("cosines", "Cosine between clients' updates", figure, alt, "Over all pairs of a round's clients.")


def _pairs(run: Run) -> Picture | None:
    """The last round's cosines, from the pairs i < j, row by row."""
    records = [one for one in run.rounds if isinstance(one.get("aggregator/cosines"), list)]
    if not records:
        return None
    last = records[-1]
    pairs = last["aggregator/cosines"]
    size = (1 + math.isqrt(1 + 8 * len(pairs))) // 2
    accepted = [client for client in run.clients if last.get(f"client/{client}/accepted")]
    if size < 3 or size * (size - 1) // 2 != len(pairs) or size > len(accepted):
        return None
    measured = [accepted[place * len(accepted) // size] for place in range(size)]
    order = iter(pairs)
    values: list[list[float | None]] = [[None] * size for _ in range(size)]
    for one in range(size):
        for other in range(one + 1, size):
            values[one][other] = values[other][one] = next(order)
    names = [run.called(client).removeprefix("client ") for client in measured]
    figure = draw_heat(values, names, names, show=_cosine, about_zero=True, across="client", down="client")
    alt = f"Cosines between the updates of {size} clients in round {last['round']}: {_extremes(values, names)}."
    caption = "Blue: they ask for alike steps; orange: for opposite ones."
    return Picture("cosine-pairs", f"Who agrees with whom, round {last['round']}", figure, alt, caption)


def _cosine(value: float) -> str:
    text = f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
    return "0" if text in (".00", "−.00") else text


def _extremes(values: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    pairs = [
        (value, f"{names[one]} and {names[other]}")
        for one, row in enumerate(values)
        for other, value in enumerate(row)
        if value is not None and one < other
    ]
    low, high = min(pairs), max(pairs)
    return f"most alike are clients {high[1]} ({number(high[0], 2)}), least {low[1]} ({number(low[0], 2)})"


def _tau(run: Run) -> Picture | None:
    layers = run.parts("aggregator/tau")
    lines = [
        Line(layer(name), *run.series(f"aggregator/tau/{name}"), colour(place)) for place, name in enumerate(layers)
    ]
    lines = [line for line in lines if line.y]
    if not lines:
        return None
    alt = "Similarity of the clients' data as a layer sees them, last round: "
    alt += ", ".join(f"{line.name} {number(line.y[-1], 2)}" for line in lines) + "."
    caption = "0: clients' inputs have nothing in common, evidence decides; 1: they are alike, repeatability decides."
    figure = draw_lines(lines, "τ, 0 to 1", limits=(0.0, 1.0))
    return Picture("tau", "Overlap of the clients' evidence", figure, alt, caption)
