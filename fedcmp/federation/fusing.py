"""The aggregation of a round: in the clear, or by secure aggregation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.aggregation.parts import Aggregated
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator, sums_only_methods
from fedcmp.distributed.exact import largest_magnitude
from fedcmp.distributed.secure import ClientsLost, SecureCohort
from fedcmp.errors import AggregationError, ConfigError
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.gate import Report
from fedcmp.federation.sampling import RoundPlan, unlucky
from fedcmp.federation.settings import FederationConfig
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.secure.protocol import Losses
from fedcmp.seeding import numpy_rng

if TYPE_CHECKING:
    from fedcmp.federation.federation import Federation

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
    reports: Sequence[Report] = ()
    """On all clients of the round."""


def fuse_round(
    federation: Federation, contributions: Sequence[Contribution], plan: RoundPlan, state: FederationState
) -> FusedRound:
    """Aggregates the accepted clients of a round. All ranks call it, each with the clients that it speaks for.

    Under ``federation.secure=masks`` a round that loses clients in its first sum begins again over those that are left,
    with their weights brought to sum 1: the result is that of a round in which the others never were. Under privacy
    clients clip their terms before they are summed, in the clear or under masks, and the method gets noisy sums.

    Raises:
        AggregationError: too few clients for the method, for secure aggregation, or for the noise that is promised; or
            the method made values that are not finite.
    """
    config, aggregator, population = federation.config, federation.aggregator, federation.plan.num_clients
    mechanism = federation.privacy.mechanism(plan, state.privacy) if federation.privacy else None

    def masked(own: Sequence[Contribution], lost: frozenset[int] = frozenset()) -> SecureCohort:
        return SecureCohort(
            own,
            aggregator.weighting,
            population,
            method=type(aggregator.fuse).__name__,
            losses=lambda number: Losses(words=lost) if number == 0 else Losses(),
            largest=mechanism.largest if mechanism else None,
            least=(mechanism.helpers or 0) if mechanism else 0,
        )

    if config.secure == "none":
        whole = federation.team.cohort(contributions, aggregator.weighting, population)
        return fuse_cohort(federation, whole, plan, state)
    assert federation.team.topology.world_size == 1, "check_secure refuses several ranks"
    first = masked(contributions, draw_lost(plan, tuple(one.client_id for one in contributions), config))
    tried, num_sums = first, 0
    try:
        found = fuse_cohort(federation, first, plan, state)
    except ClientsLost as loss:
        log.warning("round %d: %s; it begins again over the other %d", plan.round + 1, loss, len(loss.survivors))
        tried, num_sums = masked([one for one in contributions if one.client_id in loss.survivors]), first.num_sums
        found = fuse_cohort(federation, tried, plan, state)
    costs = first.costs if tried is first else first.costs.plus(tried.costs)
    record = {
        "secure/lost": len(first.clients) - len(tried.clients),
        "secure/sums": num_sums + tried.num_sums,
        "bytes/secure_up": costs.up,
        "bytes/secure_down": costs.down,
        "seconds/secure_clients": costs.client_seconds,
        "seconds/secure_server": costs.server_seconds,
    }
    return found._replace(record=record)


def fuse_cohort(federation: Federation, cohort: Cohort, plan: RoundPlan, state: FederationState) -> FusedRound:
    """Aggregates a cohort, in the clear or under privacy."""
    aggregator, privacy = federation.aggregator, federation.privacy
    if privacy is None:
        aggregated = aggregator.aggregate(cohort, state.params, state.aggregator)
        _check_finite(aggregated, aggregator)
        return FusedRound(cohort, aggregated, {}, state.privacy)
    private = PrivateCohort(cohort, privacy.mechanism(plan, state.privacy))
    aggregated = aggregator.aggregate(private, state.params, state.aggregator)
    return FusedRound(private, aggregated, {}, privacy.after(state.privacy, private.below))


def _check_finite(aggregated: Aggregated, aggregator: Aggregator) -> None:
    """The updates were finite: what is not is the method's."""
    for name, value in aggregated.params.items():
        if not math.isfinite(largest_magnitude(value)):
            parts = f"{type(aggregator.fuse).__name__}, then {type(aggregator.server).__name__}"
            raise AggregationError(f"the method ({parts}) made values of {name} that are not finite of finite updates")


def check_secure(federation: FederationConfig, aggregator: AggregatorConfig, ranks: int = 1) -> None:
    """Whether the method and the number of ranks fit ``federation.secure``.

    Raises:
        ConfigError: the method looks at single clients, cosines between them are asked for, or there are several ranks.
    """
    if federation.secure == "none":
        return
    secure = f"federation.secure={federation.secure}"
    if not build_aggregator(aggregator).sums_only:
        kind = aggregator.fuse.get("kind")
        chosen = f"aggregator={aggregator.name}" + (f", aggregator.fuse.kind={kind}," if kind else "")
        works = ", ".join(sums_only_methods())
        raise ConfigError(f"{secure} hides single updates, which {chosen} compares; methods that work: {works}")
    if aggregator.pairwise:
        raise ConfigError(f"{secure} hides single updates, whose cosines are measured: set aggregator.pairwise=0")
    if ranks > 1:
        raise ConfigError(f"{secure} runs all clients in one process, not in {ranks} ranks: set launch.devices=1")


def draw_lost(plan: RoundPlan, clients: tuple[int, ...], config: FederationConfig) -> frozenset[int]:
    """The clients that are lost in the first sum of a round, after they have shared their keys.

    It depends on seed, round and client alone. Of K clients at most floor(K/3) are lost, and ``min_clients`` stay: the
    likeliest to do so.
    """
    luck = {
        task.client_id: float(numpy_rng(task.seed, "secure_dropout").random())
        for task in plan.tasks
        if task.client_id in clients and config.secure_dropout
    }
    return unlucky(luck, config.secure_dropout, min(len(clients) // 3, len(clients) - config.min_clients))
