"""The cohort of a round at the coordinator: it asks the sites for their terms, and adds them as one process would."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Contribution, Traffic, num_bytes
from fedcmp.distributed.cohort import Layout, common_layout, largest_of_all, layout_of
from fedcmp.distributed.exact import Term, from_fixed, largest_magnitude, scale_exponents, sum_fixed
from fedcmp.errors import AggregationError
from fedcmp.types import Params

T = TypeVar("T")

Ask = Callable[[Sequence[Any], Mapping[int, int]], Mapping[int, list[Params]]]
"""What was shared so far, and how many terms of each client are known, to the terms that each sends next."""


class Fault(NamedTuple):
    """Why a client has no part in a round."""

    kind: str
    """A key of ``fedcmp.federation.settings.FAULTS``, or the fault of a ``Refused``."""
    reason: str

    @property
    def counted(self) -> str:
        """The key of ``FAULTS`` under which it is counted."""
        return {"policy": "refused", "closed": "lost"}.get(self.kind, self.kind)


OTHER_LAYOUT = Fault("malformed", "its terms have other names or shapes than those of most")


class LeftOut(AggregationError):
    """Sites are lost, refuse, or sent what cannot enter a sum: the aggregation may begin again without them."""

    def __init__(self, faults: Mapping[int, Fault]) -> None:
        super().__init__("; ".join(f"client {client}: {fault.reason}" for client, fault in faults.items()))
        self.faults = dict(faults)


class RoundEnded(LeftOut):
    """The same after a sum was opened under secure aggregation: the round may not begin again."""


class HubCohort:
    """The clients of a round, each at its site; results have the bits of a ``LocalCohort``.

    Terms are asked for when the first of them is needed: all that the sites can say before the server shares something
    comes in one exchange.

    Args:
        clients: the accepted clients, sorted.
        weights: p_k, float64 ``[K]``.
        population: clients of the federation.
        ask: brings terms.
    """

    def __init__(self, clients: Sequence[int], weights: Tensor, population: int, ask: Ask) -> None:
        self.clients, self.weights, self.population = tuple(clients), weights, population
        self.traffic, self.counted = Traffic(), 1.0
        self.exchanges = 0
        """How often the sites were asked."""
        self._ask = ask
        self._shared: list[Any] = []
        self._heard = Counter[int](dict.fromkeys(self.clients, 0))
        self._waiting: dict[int, list[Params]] = {client: [] for client in self.clients}

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        """As ``LocalCohort.sum``, over the terms of the sites.

        Raises:
            LeftOut: a term is not finite, or has another layout than most.
        """
        terms = self._next(self.clients)
        factors = dict.fromkeys(self.clients, 1.0)
        if weights is not None:
            factors = dict(zip(self.clients, weights.tolist(), strict=True))
        layout = self._common({client: layout_of(term) for client, term in terms.items()})
        found = {
            client: {name: abs(factors[client]) * largest_magnitude(value) for name, value in term.items()}
            for client, term in terms.items()
        }
        wrong = {client: name for client, sizes in found.items() for name in sizes if not math.isfinite(sizes[name])}
        if wrong:
            raise LeftOut(
                {one: Fault("not_finite", f"its term {name} of a sum is not finite") for one, name in wrong.items()}
            )
        exponents = scale_exponents(largest_of_all(layout, list(found.values())), len(self.clients))
        totals = sum_fixed((Term(terms.pop(client), factors[client]) for client in self.clients), exponents)
        return {name: from_fixed(totals[name], exponents[name]) for name in layout}

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """As ``LocalCohort.gather``.

        Raises:
            AggregationError: a client is not in the cohort.
            LeftOut: a term has another layout than most.
        """
        chosen = list(self.clients if clients is None else clients)
        if not chosen or not set(chosen) <= set(self.clients):
            raise AggregationError(f"gathered must be one or more of the clients {list(self.clients)}, got {chosen}")
        terms = self._next(chosen)
        layout = self._common({client: layout_of(terms[client]) for client in chosen})
        return {name: torch.stack([terms[client][name] for client in chosen]) for name in layout}

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """``fn(*args)``: this is the server."""
        return fn(*args)

    def share(self, value: T) -> T:
        """The value goes to the sites with the next exchange."""
        self._shared.append(value)
        self.traffic = self.traffic._replace(down=self.traffic.down + num_bytes(value))
        return value

    def _next(self, clients: Sequence[int]) -> dict[int, Params]:
        """The next term of each client."""
        if any(not self._waiting[client] for client in clients):
            self.exchanges += 1
            for client, terms in self._ask(self._shared, self._heard).items():
                self._waiting[client] += terms
                self._heard[client] += len(terms)
        if silent := [client for client in clients if not self._waiting[client]]:
            raise LeftOut(dict.fromkeys(silent, Fault("malformed", "it sent fewer terms than the method needs")))
        return {client: self._waiting[client].pop(0) for client in clients}

    def _common(self, layouts: Mapping[int, Layout]) -> Layout:
        """The layout of most clients, which is counted; without a majority two that differ are named."""
        (most, count), *_ = Counter(map(repr, layouts.values())).most_common()
        others = {client: layout for client, layout in layouts.items() if repr(layout) != most}
        if others and 2 * count > len(layouts):
            raise LeftOut(dict.fromkeys(others, OTHER_LAYOUT))
        layout = common_layout(layouts)
        numbers = sum(math.prod(shape) for _, *shape in layout.values())
        self.traffic = self.traffic._replace(up=self.traffic.up + 4 * numbers)
        return layout


class MaskedHubCohort(HubCohort):
    """The same under secure aggregation: ``ask`` brings the sums of all clients' next terms, and no term.

    Args:
        clients, weights, population: as for ``HubCohort``.
        ask: what was shared so far, and how many terms are known, to the sums of those that come next.
    """

    def __init__(
        self,
        clients: Sequence[int],
        weights: Tensor,
        population: int,
        ask: Callable[[Sequence[Any], int], list[Params]],
    ) -> None:
        super().__init__(clients, weights, population, lambda shared, heard: {})
        self._sums: list[Params] = []
        self._bring, self._known = ask, 0

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        """The next sum: each site has multiplied its own term."""
        if not self._sums:
            self.exchanges += 1
            self._sums = self._bring(self._shared, self._known)
            self._known += len(self._sums)
        found = self._sums.pop(0)
        self.traffic = self.traffic._replace(up=self.traffic.up + num_bytes(found))
        return found

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Refused: single terms stay hidden.

        Raises:
            AggregationError: always.
        """
        raise AggregationError("secure aggregation gives the server sums only")
