"""The aggregation of a round: in the clear, or by secure sums."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedcmp.aggregation.base import Cohort, Contribution
from fedcmp.aggregation.rules import Aggregated
from fedcmp.distributed.secure import ClientsLost, SecureCohort
from fedcmp.errors import ConfigError
from fedcmp.federation.federation import Federation
from fedcmp.federation.sampling import RoundPlan
from fedcmp.federation.secure import draw_lost
from fedcmp.federation.state import FederationState
from fedcmp.secure import Losses

log = logging.getLogger(__name__)


class FusedRound(NamedTuple):
    """What the aggregation of a round leaves."""

    cohort: Cohort
    """Of the clients whose updates are in it."""
    aggregated: Aggregated
    record: dict[str, Any]
    """What secure sums took; empty in the clear."""


def fuse_round(
    federation: Federation, contributions: Sequence[Contribution], plan: RoundPlan, state: FederationState
) -> FusedRound:
    """Aggregates the accepted clients of a round. All ranks call it, each with the clients that it speaks for.

    Under ``federation.secure=masks`` a round that loses clients in its first sum begins again over those that are left,
    with their weights brought to sum 1: the result is that of a round in which the others never were.

    Raises:
        AggregationError: too few clients for the rule, or for a secure sum.
        ConfigError: secure sums on several ranks.
    """
    config, aggregator = federation.config, federation.aggregator
    if config.secure == "none":
        cohort = federation.team.cohort(contributions, aggregator.weighting, federation.plan.num_clients)
        return FusedRound(cohort, aggregator.aggregate(cohort, state.params, state.aggregator), {})
    if federation.team.topology.world_size > 1:
        raise ConfigError(f"federation.secure={config.secure} runs all clients in one process so far")
    lost = draw_lost(plan, tuple(one.client_id for one in contributions), config)
    tried = first = _cohort(federation, contributions, lost)
    try:
        aggregated = aggregator.aggregate(first, state.params, state.aggregator)
    except ClientsLost as loss:
        log.warning("round %d: %s; it begins again over the other %d", plan.round + 1, loss, len(loss.survivors))
        left = [one for one in contributions if one.client_id in loss.survivors]
        tried = _cohort(federation, left)
        aggregated = aggregator.aggregate(tried, state.params, state.aggregator)
    costs = first.costs if tried is first else first.costs.plus(tried.costs)
    record = {
        "secure/lost": len(first.clients) - len(tried.clients),
        "secure/sums": tried.num_sums + (0 if tried is first else first.num_sums),
        "bytes/secure_up": costs.up,
        "bytes/secure_down": costs.down,
        "seconds/secure_clients": costs.client_seconds,
        "seconds/secure_server": costs.server_seconds,
    }
    return FusedRound(tried, aggregated, record)


def _cohort(
    federation: Federation, contributions: Sequence[Contribution], lost: frozenset[int] = frozenset()
) -> SecureCohort:
    """``lost``: those that vanish in the first sum."""
    aggregator = federation.aggregator
    return SecureCohort(
        contributions,
        aggregator.weighting,
        federation.plan.num_clients,
        rule=type(aggregator.fuse).__name__,
        losses=lambda number: Losses(words=lost) if number == 0 else Losses(),
    )
