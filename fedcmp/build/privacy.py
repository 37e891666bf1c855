"""What protects the clients, and the method as it runs under it."""

from __future__ import annotations

from dataclasses import replace

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.presets import build_aggregator
from fedcmp.config import Config
from fedcmp.federation.privacy import Protection, make_protection
from fedcmp.federation.sampling import RunPlan


def build_protection(config: Config, plan: RunPlan) -> Protection | None:
    """What protects the clients of a run; None: nothing does.

    Raises:
        ConfigError: as for ``make_protection``.
    """
    return make_protection(config.privacy, plan, config.run.seed)


def build_method(config: Config) -> Aggregator:
    """The method that the config names. Under privacy its server measures nothing beside."""
    momentum = config.optimizer.momentum if config.optimizer.name == "sgd" else 0.0
    method = build_aggregator(config.aggregator, momentum=momentum)
    return replace(method, measures=False) if config.privacy.on else method
