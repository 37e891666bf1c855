"""The method of a run: the aggregator, the privacy of its clients, and simulated attacks; and its federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.presets import build_aggregator
from fedcmp.config import Config
from fedcmp.distributed.team import Team
from fedcmp.errors import ConfigError
from fedcmp.federation.byzantine import Attack, plan_attack
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.federation import Federation
from fedcmp.federation.here import Here
from fedcmp.federation.privacy import Protection, make_protection
from fedcmp.federation.sampling import RunPlan
from fedcmp.runs.data import Data
from fedcmp.runs.parts import Parts
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Tracker


class Method(NamedTuple):
    """The method of a run."""

    aggregator: Aggregator
    privacy: Protection | None
    """None: the clients are not protected."""
    attack: Attack | None
    """None: no client attacks."""


def build_method(config: Config, plan: RunPlan, aggregator: Aggregator | None = None) -> Method:
    """The method that a config names, checked against the plan. No model is needed.

    Args:
        config: the run's settings, checked.
        plan: its rounds.
        aggregator: in place of the config's.

    Raises:
        ConfigError: a round has too few clients, or the privacy that is asked for is not possible with this plan.
    """
    asked, fuse = config.federation.min_clients, 0
    if aggregator is None:
        momentum = config.optimizer.decay if config.optimizer.name == "sgd" else 0.0
        aggregator = build_aggregator(config.aggregator, momentum=momentum)
        fuse = aggregator.fuse.least_clients
    if config.privacy.on:
        aggregator = replace(aggregator, measures=False)  # measurements are not protected
    smallest = min(plan.rounds, key=lambda one: len(one.tasks))
    if len(smallest.tasks) < max(asked, fuse):
        key = f"aggregator.name={config.aggregator.name}" if fuse >= asked else f"federation.min_clients={asked}"
        raise ConfigError(
            f"{key} needs at least {max(asked, fuse)} clients in a round, but round {smallest.round + 1} has "
            f"{len(smallest.tasks)}: raise federation.clients_per_round or partition.clients, or lower "
            "federation.rounds, federation.local_steps or federation.dropout"
        )
    privacy = make_protection(config.privacy, plan, config.run.seed)
    return Method(aggregator, privacy, plan_attack(config.attack, plan.num_clients, config.run.seed))


def build_federation(
    config: Config,
    data: Data,
    method: Method,
    parts: Parts,
    tracker: Tracker,
    progress: Progress,
    team: Team,
    *,
    checkpoints: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_round: Callable[[FederationState, Mapping[str, Any]], bool] = lambda state, record: False,
) -> Federation:
    """Everything that the round loop needs."""
    assert parts.fetch is not None, "these parts were built for training"
    return Federation(
        field=Here(parts.module, parts.fetch, parts.val_data, method.attack),
        aggregator=method.aggregator,
        plan=data.plan,
        config=config.federation,
        optimizer=config.optimizer,
        tracker=tracker,
        progress=progress,
        checkpoints=checkpoints,
        stop=stop,
        on_round=on_round,
        team=team,
        privacy=method.privacy,
    )
