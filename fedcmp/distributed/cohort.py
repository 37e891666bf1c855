"""Cohorts: the clients of one round, as the server may see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from fedcmp.aggregation.base import Contribution
from fedcmp.errors import AggregationError
from fedcmp.types import Params

T = TypeVar("T")


class LocalCohort:
    """All clients in one process: the oracle of every distributed cohort.

    Args:
        contributions: one per client, in any order.
        weights: p_k in the order of ``contributions``; None: shares of the samples used.

    Raises:
        AggregationError: no client, a client twice, or weights that do not sum to something positive.
    """

    def __init__(self, contributions: Sequence[Contribution], weights: torch.Tensor | None = None) -> None:
        if not contributions:
            raise AggregationError("a cohort needs at least one client")
        order = sorted(range(len(contributions)), key=lambda place: contributions[place].client_id)
        self._contributions = [contributions[place] for place in order]
        self.clients = tuple(one.client_id for one in self._contributions)
        if len(set(self.clients)) < len(self.clients):
            raise AggregationError(f"a client sent two updates in one round: {self.clients}")
        raw = torch.tensor([float(one.num_samples) for one in self._contributions], dtype=torch.float64)
        if weights is not None:
            raw = weights.double()[order]
        if not (raw.sum() > 0 and (raw >= 0).all()):
            raise AggregationError(f"the weights of the clients must be 0 or more and not all 0, got {raw.tolist()}")
        self.weights = (raw / raw.sum()).float()

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        """Adds in the order of the client ids, in float64."""
        total = {name: value.double() for name, value in fn(self._contributions[0]).items()}
        for one in self._contributions[1:]:
            total = {name: total[name] + value for name, value in fn(one).items()}
        return {name: value.float() for name, value in total.items()}

    def gather(self, fn: Callable[[Contribution], Params]) -> Params:
        """Stacks ``[K, ...]`` in the order of the client ids."""
        parts = [fn(one) for one in self._contributions]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn``; there is one process."""
        return fn(*args)
