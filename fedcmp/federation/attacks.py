"""What Byzantine clients send in the place of what they have trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.types import Params


class Crowd(NamedTuple):
    """What Byzantine clients know of each other's honest updates: mean and deviation by coordinate, and how many."""

    mean: Params
    std: Params
    num_byzantine: int
    num_clients: int


class Means(NamedTuple):
    """What a Byzantine client has to forge with."""

    strength: float
    stream: torch.Generator
    """Of this client in this round."""
    crowd: Crowd | None
    """For the kinds in COLLUDING."""
    kept: Params | None
    """Its first honest update, from the second round on."""


Forgery = Callable[[Contribution, Means], Contribution]


def _sent(honest: Contribution, delta: Params) -> Contribution:
    """An update with a half-way one that agrees with it: what seems to repeat is trusted most."""
    halfway = None if honest.halfway is None else {name: value / 2 for name, value in delta.items()}
    return replace(honest, delta=delta, halfway=halfway)


def _times(one: Contribution, factor: float) -> Contribution:
    return _sent(one, {name: factor * value for name, value in one.delta.items()})


def _noise(one: Contribution, means: Means) -> Contribution:
    noise = {
        name: torch.randn(value.shape, generator=means.stream).to(value.device)
        for name, value in sorted(one.delta.items())
    }
    factor = means.strength * math.sqrt(one.square / max(1e-30, squared_norm(noise)))
    return _sent(one, {name: factor * noise[name] for name in one.delta})


def _little(one: Contribution, means: Means) -> Contribution:
    """``mean - z std`` with the largest z that a majority cannot tell from honest spread."""
    assert means.crowd is not None
    mean, std, byzantine, clients = means.crowd
    supporters = clients // 2 + 1 - byzantine
    honest = max(1, clients - byzantine)
    share = min(max((honest - supporters) / honest, 1e-6), 1 - 1e-6)
    z = means.strength * max(0.0, statistics.NormalDist().inv_cdf(share))
    return _sent(one, {name: mean[name] - z * std[name] for name in one.delta})


def _inner(one: Contribution, means: Means) -> Contribution:
    assert means.crowd is not None
    return _sent(one, {name: -means.strength * means.crowd.mean[name] for name in one.delta})


def _replay(one: Contribution, means: Means) -> Contribution:
    return _sent(one, one.delta if means.kept is None else means.kept)


def _forged(forge: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> Forgery:
    """A turned update, with evidence that gives it more to say than it has."""

    def send(one: Contribution, means: Means) -> Contribution:
        turned = _times(one, -means.strength)
        if one.evidence is None:
            return turned
        return replace(
            turned, evidence={name: forge(one.evidence[name], means.stream) for name in sorted(one.evidence)}
        )

    return send


def _rank_one(value: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    direction = torch.nn.functional.normalize(torch.randn(len(value), generator=stream), dim=0).to(value)
    return value.diagonal().sum() * torch.outer(direction, direction)


def _malformed(one: Contribution, means: Means) -> Contribution:
    return _sent(one, {name: value.double().flatten() for name, value in one.delta.items()})


ATTACKS: Mapping[str, Forgery] = {
    "noise": _noise,
    "scale": lambda one, means: _times(one, means.strength),
    "sign": lambda one, means: _times(one, -means.strength),
    "little": _little,
    "inner": _inner,
    "replay": _replay,
    "evidence_huge": _forged(lambda value, _: 1e6 * value),
    "evidence_zero": _forged(lambda value, _: torch.zeros_like(value)),
    "evidence_negative": _forged(lambda value, _: -value),
    "evidence_rank_one": _forged(_rank_one),
    "malformed": _malformed,
}
"""Name -> what a Byzantine client sends in the place of its honest contribution.

Sources: little: Baruch, Baruch, Goldberg, NeurIPS 2019, arXiv 1902.06156; inner: Xie, Koyejo, Gupta, UAI 2019, arXiv
1903.03936; both with what the Byzantine clients know of themselves, not of all. The forged evidence is ours.
"""
COLLUDING = ("little", "inner")
STRENGTH = {"scale": 10.0, "inner": 0.5}
"""Of each kind, where the user gives none; of the others 1."""
