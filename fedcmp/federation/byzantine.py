"""Byzantine clients, simulated: they train as the others do and send something else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.distributed.team import Team
from fedcmp.errors import ConfigError, nearest
from fedcmp.federation.client import LocalStates
from fedcmp.federation.faults import Survived
from fedcmp.seeding import numpy_rng, torch_rng
from fedcmp.types import Params

KEPT = "attack"
"""Where a client keeps what it replays."""


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


@dataclass
class AttackConfig:
    """Simulated Byzantine clients. Wrong captions are a scenario: `partition.scenario=quality`."""

    kind: str = "none"
    """`none`, `noise`, `scale`, `sign`, `little` (a little is enough), `inner` (inner-product manipulation), `replay`,
    evidence that is forged beside a turned update (`evidence_huge`, `evidence_zero`, `evidence_negative`,
    `evidence_rank_one`), or `malformed`."""
    share: float = 0.3
    """Share of all clients that are byzantine, in [0, 1), the same ones in every round."""
    strength: float = 0.0
    """By how much; 0: the kind's own (scale 10, inner 0.5, others 1)."""

    def validate(self, prefix: str = "attack") -> None:
        kinds = ["none", *ATTACKS]
        if self.kind not in kinds:
            raise ConfigError(f"{prefix}.kind: unknown kind {self.kind!r}; {nearest(str(self.kind), kinds)}")
        if not 0 <= self.share < 1:
            raise ConfigError(f"{prefix}.share must be in [0, 1), got {self.share}")
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise ConfigError(f"{prefix}.strength must be 0 (the kind's own) or more, got {self.strength}")


@dataclass(frozen=True)
class Attack:
    """Which clients attack, and how."""

    kind: str
    byzantine: frozenset[int]
    strength: float
    seed: int


def plan_attack(config: AttackConfig, num_clients: int, seed: int) -> Attack | None:
    """The Byzantine clients of a run, drawn by its seed; None: there are none.

    >>> attack = plan_attack(AttackConfig("sign", 0.25), 8, 0)
    >>> len(attack.byzantine), attack == plan_attack(AttackConfig("sign", 0.25), 8, 0)
    (2, True)
    """
    count = round(config.share * num_clients)
    if config.kind == "none" or count == 0:
        return None
    chosen = numpy_rng(seed, "attack").permutation(num_clients)[:count]
    return Attack(config.kind, frozenset(chosen.tolist()), config.strength or STRENGTH.get(config.kind, 1.0), seed)


def attack_round(
    attack: Attack, trained: Survived, before: LocalStates, round_index: int, team: Team, population: int
) -> Survived:
    """What this rank's clients send: of the byzantine among them something else than they have trained.

    All ranks make this call: colluding clients share the mean and the deviation of their honest updates.

    Args:
        attack: which clients attack, and how.
        trained: the honest result of the round on this rank.
        before: what the rank's clients kept from earlier rounds.
        round_index: of the round, from 0.
        team: the ranks.
        population: clients of the federation.
    """
    mine = [one for one in trained.contributions if one.client_id in attack.byzantine]
    crowd = _crowd(mine, len(trained.contributions), team, population) if attack.kind in COLLUDING else None
    sent, states = [], dict(trained.states)
    for one in trained.contributions:
        if one.client_id not in attack.byzantine:
            sent.append(one)
            continue
        kept = before.get(one.client_id, {}).get(KEPT)
        stream = torch_rng(attack.seed, "attack", round_index, one.client_id)
        sent.append(ATTACKS[attack.kind](one, Means(attack.strength, stream, crowd, kept)))
        if attack.kind == "replay":
            states[one.client_id] = {**states.get(one.client_id, {}), KEPT: one.delta if kept is None else kept}
    return trained._replace(contributions=sent, states=states)


def _crowd(mine: list[Contribution], here: int, team: Team, population: int) -> Crowd | None:
    counts = team.collect([len(mine), here])
    byzantine, clients = (sum(one[place] for one in counts) for place in (0, 1))
    if byzantine == 0:
        return None
    cohort = team.cohort(mine, "uniform", population)
    first = cohort.share(cohort.sum(lambda one: one.delta))
    second = cohort.share(cohort.sum(lambda one: {name: value.double() ** 2 for name, value in one.delta.items()}))
    mean = {name: value / byzantine for name, value in first.items()}
    std = {name: (second[name] / byzantine - mean[name] ** 2).clamp_min(0).sqrt().float() for name in mean}
    return Crowd({name: value.float() for name, value in mean.items()}, std, byzantine, clients)
