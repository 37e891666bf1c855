"""The clients of a run: their data, their losses, their weights, and the updates that were left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcmp.data.scenarios.topic import is_unlabelled
from fedcmp.federation.settings import FAULTS
from fedcmp.measures import NATS, flatten
from fedcmp.report.blocks import Grid, Picture, Section, curves, facts
from fedcmp.report.figures import INK, Line, colour, dash, draw_bars, draw_heat
from fedcmp.report.formatting import count, is_number, number
from fedcmp.report.run.reading import Run

NAMED, DRAWN, MAPPED = 12, 32, 400
"""Up to so many clients have a name in the legend, a line of their own, a row in a map."""
LABELS = 20
"""Up to so many labels, the most frequent ones, have a column."""
BANDS = ((0.0, 0.12), (0.1, 0.16), (0.25, 0.22))
"""The lower quantile of each band of many clients' losses, and its opacity."""
FOLDED = 12
"""Tables of more rows are folded."""


def clients_section(run: Run) -> Section:
    """Who took part, whose updates were left out, and why."""
    if not run.clients:
        return Section("clients", "Clients")
    left_out = [
        (int(one["round"]), client, FAULTS.get(str(one.get(f"client/{client}/left_out")), "not recorded"))
        for one in run.rounds
        for client in run.clients
        if one.get(f"client/{client}/accepted") is False
    ]
    took = [{client for client in run.clients if one.get(f"client/{client}/samples")} for one in run.rounds]
    numbers = {
        "clients that took part": len(set[int]().union(*took)),
        "most in a round": max(map(len, took), default=0),
        "dropped out, in all rounds": sum(run.series("clients_dropped")[1]),
        "failed and trained again": sum(run.series("clients_retried")[1]),
        "updates left out": len(left_out),
    }
    taking_part = [[name, count(value)] for name, value in numbers.items()]
    if byzantine := run.summary.get("byzantine"):
        taking_part.append(["Byzantine, simulated", ", ".join(map(run.called, byzantine))])
    counts = [[why, str(many)] for why, many in Counter(why for _, _, why in left_out).most_common()]
    rows = [[why, run.called(client), str(place)] for place, client, why in left_out]
    grids = [
        Grid("Taking part", ["", "number"], taking_part),
        Grid("Why updates were left out", ["why", "updates"], counts),
        Grid("Updates that were left out", ["why", "client", "round"], rows, folded=len(rows) > FOLDED),
    ]
    pictures = _losses(run)
    if len(run.clients) <= MAPPED:
        pictures += [*_weights(run, {(place, client) for place, client, _ in left_out}), *_chosen(run)]
    return Section("clients", "Clients", pictures=pictures, grids=grids)


def _losses(run: Run) -> list[Picture]:
    """A line for each client; of many: their median, and bands."""
    found = {client: run.series(f"client/{client}/loss") for client in run.clients}
    name, title = "client-loss", "Training loss by client"
    if len(found) <= NAMED:
        lines = [Line(run.called(k), x, y, colour(n), dash=dash(n)) for n, (k, (x, y)) in enumerate(found.items())]
        return curves(name, title, lines, NATS, "Mean over the client's steps of a round.")
    by_round = defaultdict[int, list[float]](list)
    for x, y in found.values():
        for place, value in zip(x, y, strict=True):
            by_round[place].append(value)
    rounds = sorted(by_round)

    def quantile(share: float) -> list[float]:
        return [float(np.quantile(by_round[place], share)) for place in rounds]

    median = quantile(0.5)
    if len(found) <= DRAWN:
        caption = "A line for each client, and their median."
        lines = [Line("", x, y, INK, 0.8, alpha=0.35) for x, y in found.values()]
    else:
        caption = "Bands: half, eight in ten, and all of the clients."
        bands = [(quantile(low), quantile(1 - low), alpha) for low, alpha in BANDS]
        lines = [Line("", rounds, median, width=0.0, band=band) for band in bands]
    return curves(name, title, [*lines, Line("median", rounds, median, width=2.2)], NATS, caption)


def _weights(run: Run, left_out: set[tuple[int, int]]) -> list[Picture]:
    """The weights by client and round."""

    def weight(one: Mapping[str, Any], client: int) -> float | None:
        value = one.get(f"client/{client}/weight")
        return value if is_number(value) and (one["round"], client) not in left_out else None

    weights = [[weight(one, client) for one in run.rounds] for client in run.clients]
    if not any(is_number(one) for row in weights for one in row):
        return []
    rounds = [one["round"] for one in run.rounds]
    figure = draw_heat(
        weights, [run.called(client) for client in run.clients], rounds, limits=(0.0, None), across="round",
        show=lambda weight: f"{weight:.2f}".lstrip("0") or "0",
        crossed=[(run.clients.index(client), rounds.index(place)) for place, client in left_out],
    )  # fmt: skip
    caption = (
        "Shares of the samples (or as aggregator.weights says), before image use or trust. "
        "Empty: not in the round's cohort. A cross: the update was left out."
    )
    return [Picture("client-weights", "Weight by client and round", figure, caption)]


def _chosen(run: Run) -> list[Picture]:
    """The choices of methods that elect clients (Krum, Multi-Krum)."""
    chosen = {one["round"]: found for one in run.rounds if isinstance(found := one.get("aggregator/chosen"), list)}
    if not chosen:
        return []
    values = [[float(client in found) for found in chosen.values()] for client in run.clients]
    names, show = [run.called(client) for client in run.clients], {0.0: "", 1.0: "●"}
    figure = draw_heat(values, names, list(chosen), limits=(0.0, 1.0), show=show.__getitem__, across="round")
    return [Picture("client-chosen", "Clients that the method chose", figure, "Only their updates moved the server.")]


def split_section(run: Run) -> Section:
    """How the data were assigned to clients."""
    split, title = run.split, "The split of the data"
    if not split.get("clients"):
        return Section("split", title)
    sizes: list[int] = split["sizes"]
    figure = draw_bars([run.called(client) for client in range(len(sizes))], sizes, count)
    pictures = [Picture("split-sizes", "Training samples by client", figure), *_map(run, "domain"), *_map(run, "label")]
    held_out, knobs = split.get("splits") or {}, flatten(split.get("knobs") or {}, ".")
    how: dict[str, object] = {
        "scenario": split.get("scenario") or run.setting("partition", "scenario"),
        **{key: value for key, value in knobs.items() if key != "clients"},
        "clients": count(len(sizes)),
        "training samples": count(sum(sizes)),
        "validation samples": count(held_out.get("val")),
        "test samples": count(held_out.get("test")),
        "mean overlap of two clients, 0 to 1": number(split.get("overlap"), 2),
    }
    corrupted = {int(client): len(ids) for client, ids in (split.get("corrupted") or {}).items() if ids}
    rows = [[run.called(k), count(many), f"{many / sizes[k]:.0%}"] for k, many in sorted(corrupted.items())]
    grids = [
        facts("How the data were assigned", how),
        Grid("Corrupted captions", ["client", "captions", "of its own"], rows, folded=len(rows) > FOLDED),
    ]
    return Section("split", title, pictures=pictures, grids=grids)


def _map(run: Run, kind: str) -> list[Picture]:
    held = {int(client): one.get(f"{kind}s") or {} for client, one in run.split.get("composition", {}).items()}
    totals = sum((Counter(one) for one in held.values()), Counter[str]())
    if len(totals) < 2 or not 1 < len(held) <= MAPPED or all(map(is_unlabelled, totals)):
        return []
    names = [name for name, _ in totals.most_common(LABELS)]
    if kind == "domain":
        names.sort()
    values = [[float(held[client].get(name, 0)) or None for name in names] for client in sorted(held)]
    called = [run.called(client) for client in sorted(held)]
    figure = draw_heat(values, called, names, show=lambda n: f"{n:.0f}", limits=(0.0, None))
    caption = f"The {LABELS} most frequent of {len(totals)} {kind}s." if len(totals) > LABELS else ""
    return [Picture(f"split-{kind}s", f"Samples by client and {kind}", figure, caption)]
