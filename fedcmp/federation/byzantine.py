"""Byzantine clients, simulated: they train as the others do and send something else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.team import Team
from fedcmp.errors import ConfigError, nearest
from fedcmp.federation.attacks import ATTACKS, COLLUDING, STRENGTH, Crowd, Means
from fedcmp.federation.client import LocalStates
from fedcmp.federation.faults import Survived
from fedcmp.seeding import numpy_rng, torch_rng

KEPT = "attack"
"""Where a client keeps what it replays."""


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
