"""What may enter an aggregation: updates that are finite and not absurdly large. The rest is named and left out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.diagnostics import squared_norm
from fedcmp.errors import AggregationError
from fedcmp.federation.config import FederationConfig


class Report(NamedTuple):
    """What every rank may know about one client's round: numbers and words only."""

    client_id: int
    loss: float
    """Mean training loss in nats per token."""
    num_samples: int
    num_tokens: int
    num_steps: int
    rejected: str | None = None
    """Why its update may not enter; None: it may."""
    norm: float = 0.0
    """Euclidean norm of its update."""


def report(contribution: Contribution, config: FederationConfig) -> Report:
    """Judges a contribution alone: all that it sends must be finite, its norm within ``federation.max_update_norm``,
    its time within ``federation.deadline``."""
    norm = math.sqrt(squared_norm(contribution.delta))
    return Report(
        contribution.client_id,
        contribution.scalars.get("loss", 0.0),
        contribution.num_samples,
        contribution.num_tokens,
        contribution.num_steps,
        _reason(contribution, norm, config),
        norm,
    )


def unjudged(contribution: Contribution) -> Report:
    """The report on a contribution that nobody judges: clipping makes harmless what others are rejected for."""
    return Report(
        contribution.client_id, 0.0, contribution.num_samples, contribution.num_tokens, contribution.num_steps
    )


def compare_norms(reports: Sequence[Report], config: FederationConfig) -> list[Report]:
    """The reports, those rejected too whose norm is above ``federation.norm_bound`` times the median.

    The median is of the updates that are usable so far, three or more; with fewer it says nothing about who is wrong.
    Up to half of the clients cannot move it beyond the norms of the others.
    """
    norms = [one.norm for one in reports if one.rejected is None]
    if not config.norm_bound or len(norms) < 3:
        return list(reports)
    middle = statistics.median(norms)
    bound = config.norm_bound * middle
    words = f"above federation.norm_bound={config.norm_bound:g} times the round's median {middle:.3g}"
    return [
        one._replace(rejected=f"the norm of its update is {one.norm:.3g}, {words}")
        if one.rejected is None and one.norm > bound
        else one
        for one in reports
    ]


def gate(reports: Sequence[Report], config: FederationConfig) -> frozenset[int]:
    """The ids of the clients that may enter.

    Raises:
        AggregationError: they are fewer than ``federation.min_clients``.
    """
    accepted = frozenset(one.client_id for one in reports if one.rejected is None)
    if len(accepted) < config.min_clients:
        named = "; ".join(f"client {one.client_id}: {one.rejected}" for one in reports if one.rejected)
        raise AggregationError(
            f"only {len(accepted)} of {len(reports)} clients sent a usable update, fewer than "
            f"federation.min_clients={config.min_clients}; left out: {named or 'nobody'}"
        )
    return accepted


def _reason(contribution: Contribution, norm: float, config: FederationConfig) -> str | None:
    loss = contribution.scalars.get("loss", 0.0)
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    if not math.isfinite(norm):
        return "its update is not finite"
    others = {
        "halfway update": contribution.halfway,
        "evidence": contribution.evidence,
        "message": contribution.message,
    }
    for what, part in others.items():
        if part is not None and not all(bool(value.isfinite().all()) for value in part.values()):
            return f"its {what} is not finite"
    if config.max_update_norm and norm > config.max_update_norm:
        return f"the norm of its update is {norm:.3g}, above federation.max_update_norm={config.max_update_norm:g}"
    seconds = contribution.scalars.get("seconds", 0.0)
    if config.deadline and seconds > config.deadline:
        return f"it trained for {seconds:.3g} s, longer than federation.deadline={config.deadline:g}"
    return None
