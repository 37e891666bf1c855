"""Differential privacy over the rounds of a run: what a round may release, what it costs, where the budget ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.errors import ConfigError
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.guard import Guard
from fedcmp.federation.sampling import RoundPlan, RunPlan
from fedcmp.privacy.accountant import epsilon_of, require_library, solve_noise
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.privacy.noise import Draw, Noising, make_draw
from fedcmp.privacy.rules import obstacles, release_of
from fedcmp.types import Params, Scalars


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
        return epsilon_of(
            self.config.accountant, self.noise, self.taking[rounds - 1] if rounds else 0, self.config.delta
        )

    @property
    def affordable(self) -> int:
        """How many of the planned rounds fit the budget."""
        if not self.config.epsilon or self.epsilon(len(self.taking)) <= self.config.epsilon:
            return len(self.taking)
        fits, exceeds = 0, len(self.taking)
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            fits, exceeds = (middle, exceeds) if self.epsilon(middle) <= self.config.epsilon else (fits, middle)
        return fits

    @property
    def repeatable(self) -> bool:
        """Whether a round that runs twice releases the same bits, so that it costs once."""
        return self.config.stream != "system"

    def start(self) -> dict[str, Any]:
        """What is carried from round to round."""
        return {"clip": self.config.clip, "noise": self.noise}

    def continued(self, state: dict[str, Any]) -> Protection:
        """The same for a run that goes on: the noise stays what it began with, whatever the library would say now."""
        return replace(self, noise=state["noise"])

    def guard(self, rule: Aggregator, params: Params, plan: RoundPlan, state: dict[str, Any]) -> Guard:
        """What stands between the clients of a round and the rule.

        Args:
            rule: one that ``check_privacy`` lets pass.
            params: the projector; only names and shapes are read.
            plan: the round.
            state: what was carried into it.
        """
        config, invited = self.config, len(plan.tasks)
        helpers = min(config.honest or invited, invited) if config.kind == "distributed" else None
        noising = Noising(release_of(rule, params, config, state["clip"]), self.noise, invited, helpers)
        return Guard(config, noising, self.draw, plan.round, state)

    def record(self, rounds: int, clip: float) -> Scalars:
        """What the record of a round tells: computed from what was released, and from settings.

        Args:
            rounds: rounds done.
            clip: the bound in the last of them.
        """
        return {"privacy/epsilon": self.epsilon(rounds), "privacy/noise": self.noise, "privacy/clip": clip}

    def summary(self, rounds: int) -> dict[str, Any]:
        """What summary.json says of ``rounds`` rounds."""
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
    """What protects the clients of a run; None where ``privacy.kind`` is none.

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
        raise ConfigError(
            f"privacy.honest is {config.honest}, but a round has {smallest} clients: lower it, or raise "
            "federation.clients_per_round"
        )
    noise = config.noise or solve_noise(config.accountant, config.epsilon, config.delta, taking[-1])
    made = Protection(config, noise, make_draw(config.stream, seed), taking)
    if made.affordable == 0:
        raise ConfigError(
            f"privacy.epsilon={config.epsilon:g} does not allow a single round: with privacy.noise={config.noise:g} "
            f"one costs {made.epsilon(1):.3g}; raise the noise, or leave it out: then it is solved for"
        )
    return made


def most_invited(rounds: Sequence[RoundPlan]) -> tuple[int, ...]:
    """After each round, the most rounds that any client was asked to report in; those that drop out were not asked."""
    counts: Counter[int] = Counter()
    found = []
    for one in rounds:
        counts.update(task.client_id for task in one.tasks)
        found.append(max(counts.values()))
    return tuple(found)


def check_privacy(config: PrivacyConfig, rule: Aggregator, federation: FederationConfig) -> None:
    """Whether clients can be protected with these settings.

    Raises:
        ConfigError: they cannot; every reason is named.
    """
    if not config.on:
        return
    found = obstacles(rule, config)
    if federation.keep_local_state:
        found.append("federation.keep_local_state must be false: checkpoints would hold what clients keep")
    for key, why in (
        ("norm_bound", "the norms of others would decide whether a client's update enters"),
        ("max_update_norm", "privacy.clip bounds updates, and what was left out would show"),
        ("deadline", "who was late would show"),
    ):
        if getattr(federation, key):
            found.append(f"federation.{key} must be 0: {why}")
    if federation.secure_dropout and config.kind == "distributed" and not config.honest:
        found.append("privacy.honest must say how many clients stay: federation.secure_dropout loses some")
    if found:
        raise ConfigError(f"privacy.kind={config.kind} is not possible here: {'; '.join(found)}")
    release_of(rule, {}, config, config.clip)  # names of shares
