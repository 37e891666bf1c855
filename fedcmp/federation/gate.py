"""What may enter an aggregation: updates that are finite and not absurdly large. The rest is named and left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.diagnostics import squared_norm
from fedcmp.errors import AggregationError
from fedcmp.federation.config import FederationConfig


class Gated(NamedTuple):
    """The accepted contributions, and the reason for each client that was left out."""

    accepted: list[Contribution]
    rejected: dict[int, str]


def gate(contributions: Sequence[Contribution], config: FederationConfig) -> Gated:
    """Accepts updates within ``federation.max_update_norm`` where all that the client sends is finite.

    Raises:
        AggregationError: fewer than ``federation.min_clients`` remain.
    """
    accepted, rejected = [], {}
    for contribution in contributions:
        reason = _reason(contribution, config.max_update_norm)
        if reason is None:
            accepted.append(contribution)
        else:
            rejected[contribution.client_id] = reason
    if len(accepted) < config.min_clients:
        named = "; ".join(f"client {client}: {reason}" for client, reason in sorted(rejected.items()))
        raise AggregationError(
            f"only {len(accepted)} of {len(contributions)} clients sent a usable update, fewer than "
            f"federation.min_clients={config.min_clients}; left out: {named or 'nobody'}"
        )
    return Gated(accepted, rejected)


def _reason(contribution: Contribution, max_norm: float) -> str | None:
    loss = contribution.scalars.get("loss", 0.0)
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    norm = math.sqrt(squared_norm(contribution.delta))
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
    if max_norm and norm > max_norm:
        return f"the norm of its update is {norm:.3g}, above federation.max_update_norm={max_norm:g}"
    return None
