"""The page of ``fedcmp plan``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.federation.effort import Effort
from fedcmp.federation.forecast import Forecast, GroupForecast, MemoryPart
from fedcmp.models.cost import REACHED
from fedcmp.report.formatting import duration, human, table

LISTED = 32
"""Up to so many clients are shown one by one."""


class PlanPage(NamedTuple):
    """The content of the page."""

    forecast: Forecast
    name: str
    """Of the method."""
    method: Aggregator
    devices: tuple[str, ...]
    """Where each rank computes."""
    memory: tuple[MemoryPart, ...]
    """Of a rank's device; empty where the projector's shape is unknown."""
    features: int | None
    """Bytes of main memory for the image features on every rank; None: unknown."""
    notes: tuple[str, ...]
    """Warnings and hints."""
    privacy: tuple[tuple[str, str], ...] = ()
    """How clients are protected and what it costs: name and value."""
    effort: Effort | None = None
    """None: unknown."""


def describe_plan(page: PlanPage) -> str:
    """Plain text."""
    forecast = page.forecast
    parts = [describe_ranks(forecast.groups, page.devices), _schedule(page)]
    if len(forecast.clients) <= LISTED:
        rows = [[one.label, one.held, one.samples, one.steps, one.rounds] for one in forecast.clients]
        parts.append(table(rows, header=["client", "samples held", "samples used", "steps", "rounds"]))
    if page.privacy:
        parts.append(table(page.privacy, header=["privacy of clients", ""]))
    if forecast.rounds[0].most:
        sent: list[list[object]] = []
        for what, key in (("up", "bytes/up"), ("down", "bytes/down"), ("up, diagnostics", "bytes/diagnostics")):
            most = [one.most[key] for one in forecast.rounds]
            sent.append([what, _span(most), human(sum(most))])
        parts.append(table(sent, header=["bytes of all clients, at most", "in a round", "in the run"]))
    else:
        parts.append("bytes: unknown, because the widths of the models are not known before they are loaded")
    if page.effort:
        parts.append(_effort(page.effort))
    return "\n\n".join([*parts, _memory(page), *(f"note: {note}" for note in page.notes)])


def describe_ranks(groups: Sequence[GroupForecast], devices: Sequence[str]) -> str:
    """rank -> device -> group -> clients of the first round; ``devices``: where each rank computes."""
    rows = []
    for number, group in enumerate(groups):
        waves = " | ".join(" ".join(map(str, wave)) for wave in group.waves) or "none"
        for rank in group.ranks:
            who, first = f"{rank} (server)" if rank == 0 else f"{rank}", rank == group.ranks[0]
            rows.append([who, devices[rank], number, waves if first else "the same, its share of rows"])
    return table(rows, header=["rank", "device", "group", "clients of round 1, by wave"])


def _schedule(page: PlanPage) -> str:
    forecast, method = page.forecast, page.method
    dropped = [one.num_dropped for one in forecast.rounds]
    sees = "sums over clients only" if method.sums_only else "the update of every client"
    if method.pairwise > 1:
        sees += f"; for diagnostics, updates of up to {method.pairwise} clients (aggregator.pairwise=0: none)"
    facts = [
        ["rounds", f"{len(forecast.rounds):,}"],
        ["clients in a round", f"{_span(one.num_clients for one in forecast.rounds)} of {len(forecast.clients):,}"],
        *([["clients that drop out", _span(dropped)]] if any(dropped) else []),
        ["waves in a round", _span(one.num_waves for one in forecast.rounds)],
        ["samples in a round", _span(one.num_samples for one in forecast.rounds)],
        ["samples in all", f"{forecast.num_samples:,}; {forecast.share_used:.1%} of the training samples are used"],
        ["samples of a client", _spread([one.samples for one in forecast.clients])],
        ["steps of a client", _spread([one.steps for one in forecast.clients])],
        ["method", page.name],
        ["clients record", ", ".join(sorted(method.needs)) or "nothing but their update"],
        ["the server sees", sees],
        ["clients needed", f"{method.fuse.least_clients:,} or more in every round"],
    ]
    return table(facts)


def _effort(effort: Effort) -> str:
    image, caption = effort.lengths.image, round(effort.lengths.caption)
    facts = [
        ["rows of the busiest rank", f"{effort.rows:,} of {image} image and {caption} caption tokens, padded"],
        ["operations", f"{effort.rank:.2g} of this rank, {effort.run:.2g} of all"],
    ]
    if effort.seconds:
        hours = ", ".join(f"{name} {duration(seconds)}" for name, seconds in effort.seconds.items())
        facts.append([f"at {REACHED:.0%} of the bfloat16 peak", hours])
    return table(facts, header=["training (estimate; no evaluation, decoding, fusion)", ""])


def _memory(page: PlanPage) -> str:
    rows = [[part.what, human(part.server), human(part.others)] for part in page.memory]
    if page.memory:
        more = "more than " if any(part.server is None for part in page.memory) else ""
        sums = [sum(part.server or 0 for part in page.memory), sum(part.others or 0 for part in page.memory)]
        what = "together" if page.effort else "together, without activations"
        rows.append([what, *(f"{more}{human(size)}" for size in sums)])
    rows.append(["image features (main memory)", human(page.features), human(page.features)])
    return table(rows, header=["memory of a rank (estimate)", "rank 0", "others"])


def _span(values: Iterable[int]) -> str:
    numbers = sorted(values)
    return f"{numbers[0]:,}" if numbers[0] == numbers[-1] else f"{numbers[0]:,} .. {numbers[-1]:,}"


def _spread(values: Sequence[int]) -> str:
    return f"{min(values):,} / {statistics.median(values):,g} / {max(values):,} (min / median / max)"
