"""Differential privacy over the rounds of a run: what a round may release, what it costs, where the budget ends."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedcmp.aggregation.presets import AggregatorConfig
from fedcmp.errors import ConfigError
from fedcmp.federation.sampling import RoundPlan, RunPlan
from fedcmp.federation.settings import FederationConfig
from fedcmp.privacy.accountant import epsilon_of, require_library, solve_noise
from fedcmp.privacy.noise import Draw, Mechanism, make_draw, next_clip
from fedcmp.privacy.settings import PrivacyConfig, obstacles
from fedcmp.types import Scalars


@dataclass(frozen=True)
class Protection:
    """Differential privacy of the clients of one run; ``make_protection`` makes it."""

    config: PrivacyConfig
    noise: float
    """The noise multiplier z of each round."""
    draw: Draw
    taking: tuple[int, ...]
    """After each planned round, the most rounds that any client was asked to report in."""

    def epsilon(self, rounds: int) -> float:
        """What the first ``rounds`` rounds cost the client that was asked most often."""
        times = self.taking[rounds - 1] if rounds else 0
        return epsilon_of(self.config.accountant, self.noise, times, self.config.delta)

    @property
    def affordable(self) -> int:
        """How many of the planned rounds fit the budget."""
        budget = self.config.epsilon or math.inf
        return bisect_right(range(1, len(self.taking) + 1), budget, key=self.epsilon)

    @property
    def repeatable(self) -> bool:
        """Whether a round that runs twice releases the same bits, so that it costs once."""
        return self.config.stream != "system"

    def start(self) -> dict[str, Any]:
        """The state before the first round."""
        return {"clip": self.config.clip, "noise": self.noise}

    def continued(self, state: dict[str, Any]) -> Protection:
        """The same for a run that goes on: with the noise that it began with, whatever the library would find now."""
        return replace(self, noise=state["noise"])

    def mechanism(self, plan: RoundPlan, state: dict[str, Any]) -> Mechanism:
        """What a round releases, and its noise."""
        config, invited = self.config, len(plan.tasks)
        helpers = min(config.honest or invited, invited) if config.kind == "distributed" else None
        return Mechanism(state["clip"], self.noise, invited, plan.round, self.draw, helpers, config.quantile > 0)

    def after(self, state: dict[str, Any], below: float | None) -> dict[str, Any]:
        """The state after a round, of which ``below`` is the share of clients within the clip; None: not counted."""
        if below is None:
            return state
        return {**state, "clip": next_clip(state["clip"], below, self.config.quantile, self.config.quantile_rate)}

    def record(self, rounds: int, clip: float) -> Scalars:
        """The metrics after ``rounds`` rounds, the last with the bound ``clip``: no client's numbers are in them."""
        return {"privacy/epsilon": self.epsilon(rounds), "privacy/noise": self.noise, "privacy/clip": clip}

    def summary(self, rounds: int) -> dict[str, Any]:
        """The entry of summary.json after ``rounds`` rounds."""
        config = self.config
        return {
            "kind": config.kind,
            "epsilon": self.epsilon(rounds),
            "delta": config.delta,
            "budget": config.epsilon or None,
            "noise": self.noise,
            "accountant": config.accountant,
            "rounds_of_a_client": self.taking[rounds - 1] if rounds else 0,
            "stream": config.stream,
        }


def make_protection(config: PrivacyConfig, plan: RunPlan, seed: int) -> Protection | None:
    """The protection of the clients of a run; None if ``privacy.kind`` is none.

    Raises:
        ConfigError: dp-accounting is not installed, the budget does not allow one round, or more clients must be honest
            than are in a round.
    """
    if not config.on:
        return None
    require_library()
    taking = most_invited(plan.rounds)
    smallest = min(len(one.tasks) for one in plan.rounds)
    if config.honest > smallest:
        raise ConfigError(f"privacy.honest={config.honest} is above the {smallest} clients of a round")
    noise = config.noise or solve_noise(config.accountant, config.epsilon, config.delta, taking[-1])
    made = Protection(config, noise, make_draw(config.stream, seed), taking)
    if made.affordable == 0:
        raise ConfigError(
            f"privacy.epsilon={config.epsilon:g} does not allow a single round: with privacy.noise={config.noise:g} "
            f"one costs {made.epsilon(1):.3g}"
        )
    return made


def most_epsilon(config: PrivacyConfig, rounds: int) -> float:
    """The most epsilon that a run of so many rounds costs a client, at ``config.delta``; without privacy infinite."""
    if not config.on:
        return math.inf
    spent = epsilon_of(config.accountant, config.noise, rounds, config.delta) if config.noise else math.inf
    return min(spent, config.epsilon or math.inf)


def most_invited(rounds: Sequence[RoundPlan]) -> tuple[int, ...]:
    """After each round, the most rounds that any client was asked to report in; those that drop out were not asked."""
    counts: Counter[int] = Counter()
    found = []
    for one in rounds:
        counts.update(task.client_id for task in one.tasks)
        found.append(max(counts.values()))
    return tuple(found)


def check_privacy(config: PrivacyConfig, aggregator: AggregatorConfig, federation: FederationConfig) -> None:
    """Whether clients can be protected with these settings.

    Raises:
        ConfigError: they cannot; every reason is named.
    """
    if not config.on:
        return
    lossy = federation.secure_dropout and config.kind == "distributed" and not config.honest
    found = obstacles(aggregator) + [
        reason
        for wrong, reason in (
            (federation.keep_local_state, "federation.keep_local_state must be false: checkpoints would have it"),
            (federation.norm_bound, "federation.norm_bound must be 0: norms of others would decide who enters"),
            (federation.max_update_norm, "federation.max_update_norm must be 0: privacy.clip bounds updates"),
            (federation.deadline, "federation.deadline must be 0: the record would show who was late"),
            (lossy, "privacy.honest must be set: federation.secure_dropout loses clients that should add noise"),
        )
        if wrong
    ]
    if found:
        raise ConfigError(f"privacy.kind={config.kind} is not possible here: {'; '.join(found)}")
