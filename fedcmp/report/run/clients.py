"""Each client's way: its loss, its weight, and whether its update was taken."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from fedcmp.federation.settings import FAULTS
from fedcmp.report.blocks import Grid, Picture, Section
from fedcmp.report.drawing.canvas import COOL, INK, colour, dash
from fedcmp.report.drawing.heat import draw_heat
from fedcmp.report.drawing.lines import Band, Line, draw_lines
from fedcmp.report.run.reading import Run
from fedcmp.report.words import is_number, number, short

NAMED, DRAWN = 12, 32
"""Up to so many clients have a name at their line; up to so many have a line."""


def clients_section(run: Run) -> Section | None:
    """None where no client took part in a round."""
    clients = run.clients
    if not clients:
        return None
    pictures = [
        picture for picture in (_losses(run, clients), _weights(run, clients), _chosen(run, clients)) if picture
    ]
    rejected = _rejected(run, clients)
    text = [_who(run, clients, len(rejected))]
    grids = []
    if rejected:
        why = [run.faults.get(place, "") for place in rejected]
        rows = [
            [FAULTS.get(fault, "not told"), run.called(client), str(number_of_round)]
            for (number_of_round, client), fault in zip(rejected, why, strict=True)
        ]
        counts = Counter(row[0] for row in rows).most_common()
        grids.append(Grid("Why updates were left out", ["why", "updates"], [[name, str(n)] for name, n in counts]))
        grids.append(Grid("Updates that were left out", ["why", "client", "round"], rows, folded=len(rows) > 12))
    return Section("clients", "Clients", text, pictures, grids)


def _losses(run: Run, clients: Sequence[int]) -> Picture | None:
    found = {client: run.series(f"client/{client}/loss") for client in clients}
    found = {client: one for client, one in found.items() if one[1]}
    if not found:
        return None
    ends = [y[-1] for _, y in found.values()]
    alt = f"Training loss of {len(found)} clients; at the end from {number(min(ends))} to {number(max(ends))}."
    title, unit = "Training loss by client", "nats per token"
    if len(found) <= NAMED:
        lines = [Line(run.called(k), x, y, colour(n), dash=dash(n)) for n, (k, (x, y)) in enumerate(found.items())]
        return Picture("client-loss", title, draw_lines(lines, unit), alt, "Mean over the client's steps of a round.")
    rounds, values = _by_round(run, found)
    middle = Line("median", rounds, [statistics.median(one) for one in values], COOL, width=2.2)
    if len(found) <= DRAWN:
        lines = [Line("", x, y, INK, width=0.8, alpha=0.35) for x, y in found.values()]
        caption = "A line for each client, and their median."
        return Picture("client-loss", title, draw_lines([*lines, middle], unit), alt, caption)
    bands = [
        Band(rounds, [_quantile(one, low) for one in values], [_quantile(one, 1 - low) for one in values], COOL, alpha)
        for low, alpha in ((0.0, 0.12), (0.1, 0.16), (0.25, 0.22))
    ]
    caption = "Median of the clients of a round; the bands hold half, eight in ten, and all of them."
    return Picture("client-loss", title, draw_lines([middle], unit, bands=bands), alt, caption)


def _by_round(run: Run, found: dict[int, tuple[list[int], list[float]]]) -> tuple[list[int], list[list[float]]]:
    by_round: dict[int, list[float]] = {}
    for x, y in found.values():
        for place, value in zip(x, y, strict=True):
            by_round.setdefault(place, []).append(value)
    rounds = sorted(by_round)
    return rounds, [by_round[place] for place in rounds]


def _quantile(values: Sequence[float], share: float) -> float:
    """Between neighbours, linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _weights(run: Run, clients: Sequence[int]) -> Picture | None:
    rounds = run.rounds
    if len(clients) > 400 or not rounds:
        return None
    weights = [[_weight(one.get(f"client/{client}/weight")) for one in rounds] for client in clients]
    known = [value for row in weights for value in row if value is not None]
    if not known:
        return None
    columns = [str(one["round"]) for one in rounds]
    places = {client: place for place, client in enumerate(clients)}
    at = {int(one["round"]): place for place, one in enumerate(rounds)}
    crossed = [(places[client], at[when]) for when, client in _rejected(run, clients)]
    absent = any(value is None for row in weights for value in row)
    for at_row, at_column in crossed:
        weights[at_row][at_column] = None  # the cross stands there
    names = [run.called(client) for client in clients]
    figure = draw_heat(
        weights, names, columns, show=lambda value: f"{value:.2f}".lstrip("0") or "0", lowest=0.0, crossed=crossed,
        across="round",
    )  # fmt: skip
    alt = f"Weight of {len(clients)} clients in {len(rounds)} rounds, from {short(min(known))} to {short(max(known))}"
    alt += f"; {len(crossed)} updates were left out." if crossed else "; every update was taken."
    caption = "Empty: not in that round's cohort. " if absent else ""
    caption += "A cross: its update was left out." if crossed else ""
    return Picture("client-weights", "Weight by client and round", figure, alt, caption)


def _weight(value: object) -> float | None:
    return float(value) if is_number(value) else None


def _chosen(run: Run, clients: Sequence[int]) -> Picture | None:
    """What methods that elect clients chose (Krum, Multi-Krum)."""
    rounds = [one for one in run.rounds if isinstance(one.get("aggregator/chosen"), list)]
    if not rounds or len(clients) > 400:
        return None
    chosen = [[float(client in one["aggregator/chosen"]) for one in rounds] for client in clients]
    figure = draw_heat(
        chosen, [run.called(client) for client in clients], [str(one["round"]) for one in rounds],
        show=lambda value: "●" if value else "", lowest=0.0, highest=1.0, across="round",
    )  # fmt: skip
    often = {client: int(sum(row)) for client, row in zip(clients, chosen, strict=True)}
    told = ", ".join(f"{run.called(client)} {times} times" for client, times in often.items() if times)
    alt = f"How often each client was chosen: {told}."
    return Picture(
        "client-chosen", "Clients that the method chose", figure, alt, "Only their updates moved the server."
    )


def _rejected(run: Run, clients: Sequence[int]) -> list[tuple[int, int]]:
    """(round, client) of updates that were left out."""
    return [
        (int(one["round"]), client)
        for one in run.rounds
        for client in clients
        if one.get(f"client/{client}/accepted") is False
    ]


def _who(run: Run, clients: Sequence[int], rejected: int) -> str:
    sizes = [sum(f"client/{client}/loss" in one for client in clients) for one in run.rounds]
    sizes = [size for size in sizes if size] or [0]
    cohort = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    text = f"{len(clients)} clients took part, {cohort} in a round. "
    if dropped := int(sum(run.series("clients_dropped")[1])):
        text += f"{dropped} time{'s' if dropped > 1 else ''} a chosen client dropped out and used no samples. "
    if retried := int(sum(run.series("clients_retried")[1])):
        text += f"{retried} time{'s' if retried > 1 else ''} a client that had failed was trained again, and was done. "
    if rejected:
        return text + f"{rejected} update{'s were' if rejected > 1 else ' was'} left out, and the others weigh more."
    return text + "Every update was fit to enter."
