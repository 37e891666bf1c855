"""What secure aggregation requires of other settings, and which clients are lost in it."""

from __future__ import annotations

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator, sums_only_methods
from fedcmp.errors import ConfigError
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.sampling import RoundPlan
from fedcmp.seeding import numpy_rng


def check_secure(federation: FederationConfig, aggregator: AggregatorConfig, ranks: int = 1) -> None:
    """Whether the method and the ranks fit ``federation.secure``.

    Args:
        federation, aggregator: checked each by itself.
        ranks: W, of the whole run.

    Raises:
        ConfigError: the method looks at single clients, cosines between them are asked for, or there are several ranks.
    """
    if federation.secure == "none":
        return
    if not build_aggregator(aggregator).sums_only:
        own = f" with aggregator.fuse.kind={aggregator.fuse['kind']}" if "kind" in aggregator.fuse else ""
        raise ConfigError(
            f"federation.secure={federation.secure} hides what single clients send, and aggregator={aggregator.name}"
            f"{own} compares just that; methods that see sums only: {', '.join(sums_only_methods())}"
        )
    if aggregator.pairwise:
        raise ConfigError(
            f"federation.secure={federation.secure} hides what single clients send, and the cosines between clients "
            f"that aggregator.pairwise={aggregator.pairwise} asks for compare just that; set aggregator.pairwise=0"
        )
    if ranks > 1:
        raise ConfigError(
            f"federation.secure={federation.secure} runs all clients in one process so far, and this run has {ranks} "
            "ranks; start one (launch.devices=1), or set federation.secure=none"
        )


def draw_lost(plan: RoundPlan, clients: tuple[int, ...], config: FederationConfig) -> frozenset[int]:
    """The clients that are lost in the first sum of a round, after they have shared their keys.

    It depends on seed, round and client alone. Of K clients at most floor(K/3) are lost, and ``min_clients`` stay: the
    likeliest to do so.
    """
    if not config.secure_dropout:
        return frozenset()
    seeds = {task.client_id: task.seed for task in plan.tasks}
    luck = {client: float(numpy_rng(seeds[client], "secure_dropout").random()) for client in clients}
    unlucky = sorted((one for one in clients if luck[one] < config.secure_dropout), key=lambda one: luck[one])
    return frozenset(unlucky[: max(0, min(len(clients) // 3, len(clients) - config.min_clients))])
