"""Byzantine clients, simulated: they train as the others do and send something else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Contribution, Outcome, scaled, single
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.distributed.team import Team
from fedcmp.errors import ConfigError, check_choice
from fedcmp.federation.client import LocalStates, WaveResult
from fedcmp.seeding import numpy_rng, torch_rng
from fedcmp.types import Params

KEPT = "attack"
"""Where a client keeps its first honest update, which it replays."""


class Means(NamedTuple):
    """What a Byzantine client has to forge with."""

    strength: float
    stream: torch.Generator
    """Of this client in this round."""
    first: Params
    """Its first honest update."""
    mean: Params = {}  # noqa: RUF012 - never written
    """Of the honest updates of colluding clients, by coordinate, like ``std``; empty unless the attack colludes."""
    std: Params = {}  # noqa: RUF012
    num_byzantine: int = 0
    num_clients: int = 0


class Forgery(NamedTuple):
    """One attack: the delta that is sent in the place of the honest one, and a layer's evidence (None: honest)."""

    delta: Callable[[Contribution, Means], Params]
    evidence: Callable[[Tensor, torch.Generator], Tensor] | None = None
    strength: float = 1.0
    """Where the user gives none."""
    colludes: bool = False


def _times(one: Contribution, means: Means) -> Params:
    return {name: means.strength * value for name, value in one.delta.items()}


def _turned(one: Contribution, means: Means) -> Params:
    return {name: -means.strength * value for name, value in one.delta.items()}


def _noise(one: Contribution, means: Means) -> Params:
    """Gaussian, of ``strength`` times the norm of the honest update."""
    noise = {
        name: torch.randn(value.shape, generator=means.stream).to(value.device)
        for name, value in sorted(one.delta.items())
    }
    factor = means.strength * math.sqrt(one.square / max(1e-30, squared_norm(noise)))
    return {name: factor * noise[name] for name in one.delta}


def _little(one: Contribution, means: Means) -> Params:
    """``mean - z std`` with the largest z that a majority cannot tell from honest spread."""
    supporters = means.num_clients // 2 + 1 - means.num_byzantine
    honest = max(1, means.num_clients - means.num_byzantine)
    share = min(max((honest - supporters) / honest, 1e-6), 1 - 1e-6)
    z = means.strength * max(0.0, statistics.NormalDist().inv_cdf(share))
    return {name: means.mean[name] - z * means.std[name] for name in one.delta}


def _rank_one(value: Tensor, stream: torch.Generator) -> Tensor:
    direction = torch.nn.functional.normalize(torch.randn(len(value), generator=stream), dim=0).to(value)
    return value.diagonal().sum() * torch.outer(direction, direction)


ATTACKS: Mapping[str, Forgery] = {
    "noise": Forgery(_noise),
    "scale": Forgery(_times, strength=10.0),
    "sign": Forgery(_turned),
    "little": Forgery(_little, colludes=True),
    "inner": Forgery(
        lambda one, means: {name: -means.strength * means.mean[name] for name in one.delta},
        strength=0.5,
        colludes=True,
    ),
    "replay": Forgery(lambda one, means: means.first),
    "evidence_huge": Forgery(_turned, lambda value, _: 1e6 * value),
    "evidence_zero": Forgery(_turned, lambda value, _: torch.zeros_like(value)),
    "evidence_negative": Forgery(_turned, lambda value, _: -value),
    "evidence_rank_one": Forgery(_turned, _rank_one),
    "malformed": Forgery(lambda one, _: {name: value.double().flatten() for name, value in one.delta.items()}),
}
"""Name -> what a Byzantine client sends.

Sources: little: Baruch, Baruch, Goldberg, NeurIPS 2019, arXiv 1902.06156; inner: Xie, Koyejo, Gupta, UAI 2019, arXiv
1903.03936; both with what the Byzantine clients know of themselves, not of all. The forged evidence is ours.
"""


@dataclass
class AttackConfig:
    """Simulated Byzantine clients. Wrong captions are a scenario: `partition.scenario=quality`."""

    kind: str = "none"
    """`none`, or what Byzantine clients send ([kinds](faults.md#attacks))."""
    share: float = 0.3
    """Share of all clients that are byzantine, in [0, 1), the same ones in every round."""
    strength: float = 0.0
    """By how much; 0: the kind's own (scale 10, inner 0.5, others 1)."""

    def validate(self, prefix: str = "attack") -> None:
        check_choice(f"{prefix}.kind", self.kind, ["none", *ATTACKS])
        if not 0 <= self.share < 1:
            raise ConfigError(f"{prefix}.share must be in [0, 1), got {self.share}")
        if not 0 <= self.strength < math.inf:
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
    return Attack(config.kind, frozenset(chosen.tolist()), config.strength or ATTACKS[config.kind].strength, seed)


def attack_round(
    attack: Attack, trained: WaveResult, before: LocalStates, round_index: int, team: Team, population: int
) -> WaveResult:
    """What this rank's clients send: the Byzantine ones forge it. All ranks make this call.

    A forged update comes with a half-way one that agrees with it, because what seems to repeat is trusted most, and
    the client states the opposite of every outcome. Moments of a refit are those of the forged update.

    Args:
        trained: the honest result of round ``round_index``, from 0, on this rank.
        before: what the rank's clients kept from earlier rounds.
        population: clients of the federation.
    """
    forgery = ATTACKS[attack.kind]
    crowd: tuple[()] | tuple[Params, Params, int, int] = ()
    if forgery.colludes:
        mine = [one for one in trained.contributions if one.client_id in attack.byzantine]
        crowd = _crowd(mine, len(trained.contributions), team, population)
    sent, states = [], dict(trained.states)
    for one in trained.contributions:
        client = one.client_id
        if client not in attack.byzantine:
            sent.append(one)
            continue
        stream = torch_rng(attack.seed, "attack", round_index, client)
        first: Params = before.get(client, {}).get(KEPT, one.delta)
        delta, evidence = forgery.delta(one, Means(attack.strength, stream, first, *crowd)), one.evidence
        if evidence is not None and forgery.evidence is not None:
            evidence = {name: forgery.evidence(value, stream) for name, value in sorted(evidence.items())}
        halfway = None if one.halfway is None else scaled(delta, 0.5)
        outcome = None if one.outcome is None else _opposite(one.outcome)
        picture_losses = None if one.picture_losses is None else (0.0, 1.0)
        forged = replace(
            one, delta=delta, halfway=halfway, evidence=evidence, outcome=outcome, picture_losses=picture_losses
        )
        sent.append(forged)
        if attack.kind == "replay":
            states[client] = {**states.get(client, {}), KEPT: first}
    return trained._replace(contributions=sent, states=states)


def _opposite(outcome: Outcome) -> Outcome:
    return lambda params: [-loss for loss in outcome(params)]


def _crowd(
    mine: list[Contribution], here: int, team: Team, population: int
) -> tuple[()] | tuple[Params, Params, int, int]:
    """Mean and deviation of the honest updates of all Byzantine clients, how many these are, and all clients."""
    byzantine, clients = map(sum, zip(*team.collect([len(mine), here]), strict=True))
    if byzantine == 0:
        return ()
    cohort = team.cohort(mine, "uniform", population)
    first = cohort.share(cohort.sum(lambda one: one.delta))
    second = cohort.share(cohort.sum(lambda one: {name: value.double() ** 2 for name, value in one.delta.items()}))
    mean = {name: value / byzantine for name, value in first.items()}
    std = {name: (second[name] / byzantine - mean[name] ** 2).clamp_min(0).sqrt().float() for name in mean}
    return single(mean), std, byzantine, clients
