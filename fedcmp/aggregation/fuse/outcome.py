"""The choice among deltas by their outcome: the losses that clients have with each on samples not yet trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedcmp.aggregation.contribution import Contribution
from fedcmp.types import Metrics, Params

LAST_ROUNDS = 4
"""In so many rounds at the end the outcome decides, whatever share of the run they are."""


def candidates(mean: Params, by_evidence: Params) -> dict[str, Params]:
    """The deltas of which the outcome chooses one: these two and the middle between them."""
    middle = {name: (value + by_evidence[name]) / 2 for name, value in mean.items()}
    return {"mean": mean, "midpoint": middle, "evidence": by_evidence}


def is_late(contribution: Contribution, explore: float) -> bool:
    """Whether the outcome decides in this round: more than ``explore`` of the run is done, or few rounds are left."""
    left = contribution.rounds_left
    return contribution.progress > explore or (left is not None and left < LAST_ROUNDS)


def vote(params: Params, shared: dict[str, Params], contribution: Contribution) -> Params:
    """A client's regrets ``(L - min L) / (max L - min L)`` of the candidates, in [0, 1], and a 1 that counts it.

    A loss that is not finite has regret 1. A client without a next batch, or without any finite loss, does not vote:
    its numbers are 0.

    Args:
        params: the parameters of which each delta begins.
        shared: ``"mean"`` and ``"evidence"``, the deltas of which the candidates are made.
        contribution: of the client.
    """
    asked = candidates(shared["mean"], shared["evidence"]).values()
    votes = [0.0] * (len(asked) + 1)
    if contribution.outcome is not None:
        moved = [{name: at + delta[name] for name, at in params.items()} for delta in asked]
        losses = contribution.outcome(moved)
        finite = [loss for loss in losses if math.isfinite(loss)]
        if finite:
            least, largest = min(finite), max(finite)
            scale = largest - least or 1.0
            votes = [min(1.0, (loss - least) / scale) if math.isfinite(loss) else 1.0 for loss in losses] + [1.0]
    return {"votes": contribution.numbers(*votes)}


def choose(names: Iterable[str], votes: list[float]) -> tuple[str, Metrics]:
    """The candidate with the least regret, and each one's share and choice as metrics.

    Args:
        names: of the candidates.
        votes: the weighted sums of ``vote``, of which the last, the weight of those who voted, is above 0.

    >>> choose(("mean", "evidence"), [0.5, 0.25, 0.5])[0]
    'evidence'
    """
    *regrets, voted = votes
    least = regrets.index(min(regrets))
    metrics: Metrics = {}
    for place, name in enumerate(names := list(names)):
        metrics[f"aggregator/regret/{name}"] = regrets[place] / voted
        metrics[f"aggregator/chosen/{name}"] = float(place == least)
    return names[least], metrics
