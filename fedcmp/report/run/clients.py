"""The clients of a run: their data, their losses, their weights, and the updates that were left out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedcmp.data.scenarios.topic import is_unlabelled
from fedcmp.federation.settings import FAULTS
from fedcmp.measures import NATS
from fedcmp.report.blocks import Grid, Picture, Section, curves
from fedcmp.report.figures import COOL, INK, Band, Line, colour, dash, draw_bars, draw_heat, draw_lines
from fedcmp.report.formatting import count, is_number, number
from fedcmp.report.run.reading import Run

NAMED, DRAWN, MAPPED = 12, 32, 400
"""Up to so many clients have a name in the legend, a line of their own, a row in a map."""
LABELS = 20
"""Up to so many labels, the most frequent ones, have a column."""
FOLDED = 12
"""Tables of more rows are folded."""


def clients_section(run: Run) -> Section | None:
    """None where no client took part in a round."""
    if not run.clients:
        return None
    rejected = [
        (int(one["round"]), client)
        for one in run.rounds
        for client in run.clients
        if one.get(f"client/{client}/accepted") is False
    ]
    sizes = [sum(f"client/{client}/loss" in one for client in run.clients) for one in run.rounds]
    facts = {"clients that took part": len(run.clients), "most in a round": max(sizes, default=0)}
    facts["dropped out, in all rounds"] = int(sum(run.series("clients_dropped")[1]))
    facts["failed and trained again"] = int(sum(run.series("clients_retried")[1]))
    facts["updates left out"] = len(rejected)
    grids = [Grid("Taking part", ["", "number"], [[name, count(value)] for name, value in facts.items()])]
    if rejected:
        rows = [
            [FAULTS.get(run.faults.get((place, client), ""), "not recorded"), run.called(client), str(place)]
            for place, client in rejected
        ]
        counts = [[why, str(many)] for why, many in Counter(row[0] for row in rows).most_common()]
        grids.append(Grid("Why updates were left out", ["why", "updates"], counts))
        grids.append(Grid("Updates that were left out", ["why", "client", "round"], rows, folded=len(rows) > FOLDED))
    pictures = [*_losses(run), *_weights(run, rejected), *_chosen(run)]
    return Section("clients", "Clients", pictures=pictures, grids=grids)


def _losses(run: Run) -> list[Picture]:
    found = {client: run.series(f"client/{client}/loss") for client in run.clients}
    name, title = "client-loss", "Training loss by client"
    if len(found) <= NAMED:
        lines = [Line(run.called(k), x, y, colour(n), dash=dash(n)) for n, (k, (x, y)) in enumerate(found.items())]
        return curves(name, title, lines, NATS, "Mean over the client's steps of a round.")
    by_round: dict[int, list[float]] = {}
    for x, y in found.values():
        for place, value in zip(x, y, strict=True):
            by_round.setdefault(place, []).append(value)
    by_round = {place: sorted(by_round[place]) for place in sorted(by_round)}
    rounds, values = list(by_round), list(by_round.values())
    middle = Line("median", rounds, [statistics.median(one) for one in values], width=2.2)
    if len(found) <= DRAWN:
        lines = [Line("", x, y, INK, 0.8, alpha=0.35) for x, y in found.values()]
        figure = draw_lines([*lines, middle], NATS)
        return [Picture(name, title, figure, caption="A line for each client, and their median.")] if values else []
    bands = [
        Band(rounds, [_quantile(one, low) for one in values], [_quantile(one, 1 - low) for one in values], COOL, alpha)
        for low, alpha in ((0.0, 0.12), (0.1, 0.16), (0.25, 0.22))
    ]
    return curves(name, title, [middle], NATS, "Bands: half, eight in ten, and all of the clients.", bands=bands)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between neighbours, linearly."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _weights(run: Run, rejected: Sequence[tuple[int, int]]) -> list[Picture]:
    def value(one: Mapping[str, Any], client: int) -> float | None:
        weight = one.get(f"client/{client}/weight")
        return weight if is_number(weight) and (one["round"], client) not in left_out else None

    left_out = set(rejected)
    weights = [[value(one, client) for one in run.rounds] for client in run.clients]
    if len(run.clients) > MAPPED or not any(is_number(one) for row in weights for one in row):
        return []
    at = {int(one["round"]): place for place, one in enumerate(run.rounds)}
    figure = draw_heat(
        weights, [run.called(client) for client in run.clients], [str(one) for one in at], lowest=0.0,
        show=lambda weight: f"{weight:.2f}".lstrip("0") or "0", across="round",
        crossed=[(run.clients.index(client), at[place]) for place, client in rejected],
    )  # fmt: skip
    caption = "Empty: not in the round's cohort. A cross: the update was left out."
    return [Picture("client-weights", "Weight by client and round", figure, caption=caption)]


def _chosen(run: Run) -> list[Picture]:
    """The choices of methods that elect clients (Krum, Multi-Krum)."""
    rounds = [one for one in run.rounds if isinstance(one.get("aggregator/chosen"), list)]
    if not rounds or len(run.clients) > MAPPED:
        return []
    figure = draw_heat(
        [[float(client in one["aggregator/chosen"]) for one in rounds] for client in run.clients],
        [run.called(client) for client in run.clients], [str(one["round"]) for one in rounds], lowest=0.0, highest=1.0,
        show=lambda value: "●" if value else "", across="round",
    )  # fmt: skip
    caption = "Only their updates moved the server."
    return [Picture("client-chosen", "Clients that the method chose", figure, caption=caption)]


def split_section(run: Run) -> Section | None:
    """None where split.json is missing."""
    if not run.split.get("clients"):
        return None
    sizes: list[int] = run.split["sizes"]
    figure = draw_bars([run.called(client) for client in range(len(sizes))], sizes, count)
    pictures = [Picture("split-sizes", "Training samples by client", figure), *_map(run, "domain"), *_map(run, "label")]
    return Section("split", "The split of the data", pictures=pictures, grids=[_facts(run, sizes), *_corrupted(run)])


def _map(run: Run, kind: str) -> list[Picture]:
    held = {int(client): one.get(f"{kind}s") or {} for client, one in run.split.get("composition", {}).items()}
    totals: Counter[str] = Counter()
    for one in held.values():
        totals.update(one)
    if len(totals) < 2 or not 1 < len(held) <= MAPPED or all(map(is_unlabelled, totals)):
        return []
    names = [name for name, _ in totals.most_common(LABELS)]
    if kind == "domain":
        names.sort()
    values = [[float(held[client].get(name, 0)) or None for name in names] for client in sorted(held)]
    figure = draw_heat(values, [run.called(one) for one in sorted(held)], names, show=lambda n: f"{n:.0f}", lowest=0.0)
    caption = f"The {LABELS} most frequent of {len(totals)} {kind}s." if len(totals) > LABELS else ""
    return [Picture(f"split-{kind}s", f"Samples by client and {kind}", figure, caption=caption)]


def _facts(run: Run, sizes: Sequence[int]) -> Grid:
    split, held_out = run.split, run.split.get("splits") or {}
    knobs = {key: value for key, value in _flat(split.get("knobs") or {}).items() if key != "clients"}
    rows = {
        "scenario": str(split.get("scenario") or run.setting("partition", "scenario")),
        **{key: str(value) for key, value in knobs.items()},
        "clients": count(len(sizes)),
        "training samples": count(sum(sizes)),
        "validation samples": count(held_out.get("val")),
        "test samples": count(held_out.get("test")),
        "mean overlap of two clients, 0 to 1": number(split.get("overlap"), 2),
    }
    return Grid("How the data were assigned", ["what", "value"], [[*row] for row in rows.items()], text_columns=2)


def _flat(knobs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in knobs.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _corrupted(run: Run) -> list[Grid]:
    corrupted = {int(client): len(ids) for client, ids in (run.split.get("corrupted") or {}).items() if ids}
    rows = [
        [run.called(client), count(many), f"{many / run.split['sizes'][client]:.0%}"]
        for client, many in sorted(corrupted.items())
    ]
    header = ["client", "captions", "of its own"]
    return [Grid("Corrupted captions", header, rows, folded=len(rows) > FOLDED)] if rows else []
