"""The aggregation of a round: in the clear, or by secure aggregation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.aggregation.parts import Aggregated
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator, sums_only_methods
from fedcmp.distributed.secure import ClientsLost, SecureCohort
from fedcmp.errors import ConfigError
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.federation import Federation
from fedcmp.federation.sampling import RoundPlan
from fedcmp.federation.settings import FederationConfig
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.noise import Mechanism
from fedcmp.secure.protocol import Losses
from fedcmp.seeding import numpy_rng
from fedcmp.types import Params

log = logging.getLogger(__name__)


class FusedRound(NamedTuple):
    """What the aggregation of a round leaves."""

    cohort: Cohort
    """Of the clients whose updates are in it."""
    aggregated: Aggregated
    record: dict[str, Any]
    """What secure aggregation took; empty in the clear."""
    carried: dict[str, Any]
    """What privacy carries into the next round."""

    @property
    def params(self) -> Params:
        """The new global projector."""
        return self.aggregated.params


def fuse_round(
    federation: Federation, contributions: Sequence[Contribution], plan: RoundPlan, state: FederationState
) -> FusedRound:
    """Aggregates the accepted clients of a round. All ranks call it, each with the clients that it speaks for.

    Under ``federation.secure=masks`` a round that loses clients in its first sum begins again over those that are left,
    with their weights brought to sum 1: the result is that of a round in which the others never were. Under privacy
    clients clip their terms before they are summed, in the clear or under masks, and the method gets noisy sums.

    Raises:
        AggregationError: too few clients for the method, for secure aggregation, or for the noise that is promised.
        ConfigError: secure aggregation on several ranks.
    """
    config, aggregator = federation.config, federation.aggregator
    mechanism = federation.privacy.mechanism(plan, state.privacy) if federation.privacy else None
    if config.secure == "none":
        plain = federation.team.cohort(contributions, aggregator.weighting, federation.plan.num_clients)
        return _aggregated(federation, plain, mechanism, state)
    if federation.team.topology.world_size > 1:
        raise ConfigError(f"federation.secure={config.secure} runs all clients in one process so far")
    lost = draw_lost(plan, tuple(one.client_id for one in contributions), config)
    tried = first = _masked(federation, contributions, mechanism, lost)
    try:
        fused = _aggregated(federation, first, mechanism, state)
    except ClientsLost as loss:
        log.warning("round %d: %s; it begins again over the other %d", plan.round + 1, loss, len(loss.survivors))
        left = [one for one in contributions if one.client_id in loss.survivors]
        tried = _masked(federation, left, mechanism)
        fused = _aggregated(federation, tried, mechanism, state)
    costs = first.costs if tried is first else first.costs.plus(tried.costs)
    record = {
        "secure/lost": len(first.clients) - len(tried.clients),
        "secure/sums": tried.num_sums + (0 if tried is first else first.num_sums),
        "bytes/secure_up": costs.up,
        "bytes/secure_down": costs.down,
        "seconds/secure_clients": costs.client_seconds,
        "seconds/secure_server": costs.server_seconds,
    }
    return fused._replace(record=record)


def _aggregated(
    federation: Federation, inner: Cohort, mechanism: Mechanism | None, state: FederationState
) -> FusedRound:
    aggregate = federation.aggregator.aggregate
    if federation.privacy is None or mechanism is None:
        return FusedRound(inner, aggregate(inner, state.params, state.aggregator), {}, state.privacy)
    cohort = PrivateCohort(inner, mechanism)
    aggregated = aggregate(cohort, state.params, state.aggregator)
    return FusedRound(cohort, aggregated, {}, federation.privacy.after(state.privacy, cohort.below))


def _masked(
    federation: Federation,
    contributions: Sequence[Contribution],
    mechanism: Mechanism | None,
    lost: frozenset[int] = frozenset(),
) -> SecureCohort:
    """``lost``: those that vanish in the first sum."""
    aggregator = federation.aggregator
    return SecureCohort(
        contributions,
        aggregator.weighting,
        federation.plan.num_clients,
        method=type(aggregator.fuse).__name__,
        losses=lambda number: Losses(words=lost) if number == 0 else Losses(),
        largest=mechanism.largest if mechanism else None,
        least=(mechanism.helpers or 0) if mechanism else 0,
    )


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
