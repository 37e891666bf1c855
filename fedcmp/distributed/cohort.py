"""Cohorts: the clients of one round, as the server may see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from fedcmp.aggregation.base import WEIGHTINGS, Contribution, Traffic, num_bytes
from fedcmp.errors import AggregationError
from fedcmp.types import Params

T = TypeVar("T")


class LocalCohort:
    """All clients in one process: the oracle of every distributed cohort.

    Args:
        contributions: one per client, in any order.
        weighting: what the weights p_k count: a key of ``WEIGHTINGS``.
        population: clients of the whole federation; None: those that are here.

    Raises:
        AggregationError: no client, a client twice, or weights that are all 0.
    """

    def __init__(
        self, contributions: Sequence[Contribution], weighting: str = "samples", population: int | None = None
    ) -> None:
        if not contributions:
            raise AggregationError("a cohort needs at least one client")
        self._contributions = sorted(contributions, key=lambda one: one.client_id)
        self.clients = tuple(one.client_id for one in self._contributions)
        self.population = len(self.clients) if population is None else population
        if len(set(self.clients)) < len(self.clients):
            raise AggregationError(f"a client sent two updates in one round: {self.clients}")
        raw = torch.tensor([WEIGHTINGS[weighting](one) for one in self._contributions], dtype=torch.float64)
        if not (raw.sum() > 0 and (raw >= 0).all()):
            raise AggregationError(f"the weights of the clients must be 0 or more and not all 0, got {raw.tolist()}")
        self.weights = raw / raw.sum()
        self.traffic = Traffic()

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        """Adds in the order of the client ids, in float64."""
        total = {name: value.double() for name, value in fn(self._contributions[0]).items()}
        self.traffic = self.traffic._replace(up=self.traffic.up + num_bytes(total))
        for one in self._contributions[1:]:
            for name, value in fn(one).items():
                total[name] = total[name] + value
        return total

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Stacks ``[K, ...]`` in the order of ``clients``."""
        by_id = dict(zip(self.clients, self._contributions, strict=True))
        parts = [fn(by_id[client]) for client in (self.clients if clients is None else clients)]
        self.traffic = self.traffic._replace(up=self.traffic.up + num_bytes(parts[0]))
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn``; there is one process."""
        return fn(*args)

    def share(self, value: T) -> T:
        """The value; there is one process."""
        self.traffic = self.traffic._replace(down=self.traffic.down + num_bytes(value))
        return value
