"""Who is in a cohort, and with what weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fedcmp.errors import AggregationError


class Roster(NamedTuple):
    """The clients of a cohort."""

    clients: tuple[int, ...]
    """Ids, sorted."""
    weights: torch.Tensor
    """p_k in the order of the ids: float64 ``[K]``, sum 1."""


def make_roster(entries: Sequence[tuple[int, float]]) -> Roster:
    """Brings raw weights to sum 1, in the same bits on every machine and in any order of the entries.

    Args:
        entries: a client's id and raw weight, in any order.

    Raises:
        AggregationError: no client, a client twice, or weights that are negative, not finite, or all 0.

    >>> make_roster([(5, 30.0), (2, 10.0)])
    Roster(clients=(2, 5), weights=tensor([0.2500, 0.7500], dtype=torch.float64))
    """
    if not entries:
        raise AggregationError("a cohort needs at least one client")
    ordered = sorted(entries)
    clients, raw = tuple(client for client, _ in ordered), [weight for _, weight in ordered]
    if len(set(clients)) < len(clients):
        raise AggregationError(f"a client sent two updates in one round: {clients}")
    if not (any(raw) and all(0 <= weight < math.inf for weight in raw)):
        raise AggregationError(f"the weights of the clients must be 0 or more and not all 0, got {raw}")
    total = math.fsum(raw)
    return Roster(clients, torch.tensor([weight / total for weight in raw], dtype=torch.float64))


def choose(known: Sequence[int], wanted: Sequence[int] | None) -> list[int]:
    """The clients of a gather, in the order in which they are wanted; None: all.

    Raises:
        AggregationError: none is wanted, or one that is not in the cohort.

    >>> choose((2, 5, 7), [7, 2])
    [7, 2]
    """
    chosen = list(known if wanted is None else wanted)
    if not chosen or not set(chosen) <= set(known):
        raise AggregationError(f"gathered must be one or more of the clients {list(known)}, got {chosen}")
    return chosen
