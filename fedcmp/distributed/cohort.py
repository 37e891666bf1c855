"""Cohorts: the clients of one round, as the server may see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import WEIGHTINGS, Contribution, Traffic, num_bytes
from fedcmp.distributed.exact import Term, from_fixed, largest_magnitude, scale_exponents, sum_fixed
from fedcmp.distributed.messages import together
from fedcmp.distributed.wire import Alone, Wire
from fedcmp.errors import AggregationError
from fedcmp.types import Params

T = TypeVar("T")
HELD_BYTES = 6 * 2**30
"""Terms that need no more than this together are held between the two readings of a sum; others are computed twice."""

Layout = dict[str, tuple[Any, ...]]
"""By name, the dtype (as text) and the shape of a tensor, as plain data that may cross ranks."""


class GroupCohort:
    """The clients of all ranks, each where it was trained. Every method, and the constructor, is collective.

    Same results and traffic, bit for bit, whatever the number of ranks and wherever the clients are. What user code
    raises on one rank, all ranks raise (``Wire.agree``).

    Args:
        contributions: those of this rank, in any order; may be none.
        wire: the ranks; rank 0 is the server.
        weighting: what the weights p_k count: a key of ``WEIGHTINGS``.
        population: clients of the whole federation; None: those of all ranks. The server's counts.

    Raises:
        AggregationError: no client at all, a client twice, or weights that are all 0.
    """

    def __init__(
        self,
        contributions: Sequence[Contribution],
        wire: Wire | Alone,
        weighting: str = "samples",
        population: int | None = None,
    ) -> None:
        self._wire = wire
        self._contributions = sorted(contributions, key=lambda one: one.client_id)
        count = WEIGHTINGS[weighting]
        found = wire.collect_from(lambda: ([(one.client_id, count(one)) for one in self._contributions], population))
        self._home = {client: rank for rank, (brought, _) in enumerate(found) for client, _ in brought}
        self.clients, self.weights = roster([entry for brought, _ in found for entry in brought])
        self.population = len(self.clients) if found[0][1] is None else found[0][1]
        self.traffic, self.counted = Traffic(), 1.0

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        """Adds exactly (``exact.py``), at the server; elsewhere the result is empty. ``fn`` may be called twice.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        wire = self._wire
        terms = Terms(self._contributions, fn, self.clients, weights)
        found = wire.collect_from(lambda: (terms.scan(), terms.largest))  # ranks without clients must know it, too
        layout = self._common([layout for layout, _ in found], self.clients)
        largest = largest_of_all(layout, [one for _, clients in found for one in clients.values()])
        exponents = scale_exponents(largest, len(self.clients))
        totals = together(wire, lambda: sum_fixed(terms, exponents))
        result: Params = {}
        for name, (_, *shape) in layout.items():
            own = totals.pop(name) if totals else torch.zeros(shape, dtype=torch.int64, device=wire.device)
            total = wire.total(own, to_server=True)
            if wire.rank == 0:
                result[name] = from_fixed(total, exponents[name])
        return result

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Stacks ``[K, ...]`` at the server, in the order of ``clients``; elsewhere the result is empty.

        Raises:
            AggregationError: a client is not in the cohort, or clients send different tensors.
        """
        wire, chosen = self._wire, list(self.clients if clients is None else clients)
        if not chosen or not set(chosen) <= set(self.clients):
            raise AggregationError(f"gathered must be one or more of the clients {list(self.clients)}, got {chosen}")
        by_id = {one.client_id: one for one in self._contributions}
        parts: dict[int, Params] = {}

        def compute() -> Layout:
            parts.update({client: fn(by_id[client]) for client in chosen if client in by_id})
            return common_layout({client: layout_of(part) for client, part in parts.items()})

        layout = self._common(wire.collect_from(compute), chosen)
        stacked: Params = {}
        if wire.rank == 0:
            stacked = {
                name: torch.empty((len(chosen), *shape), dtype=getattr(torch, dtype), device=wire.device)
                for name, (dtype, *shape) in layout.items()
            }
        for place, client in enumerate(chosen):
            for name in layout:
                if client in parts and wire.rank == 0:
                    stacked[name][place] = parts[client][name]
                elif client in parts:
                    wire.send(parts[client][name])
                elif wire.rank == 0:
                    wire.receive(stacked[name][place], self._home[client])
        return stacked

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn`` at the server; elsewhere the result is None. ``fn`` must not use the cohort's collectives."""
        return cast(T, together(self._wire, lambda: fn(*args) if self._wire.rank == 0 else None))

    def share(self, value: T) -> T:
        """The server's value, on every rank."""
        value = self._wire.share(value)
        self.traffic = self.traffic._replace(down=self.traffic.down + num_bytes(value))
        return value

    def _common(self, layouts: Sequence[Layout], clients: Sequence[int]) -> Layout:
        """The layout of what all ``clients`` send, from those of the ranks where they are; it is counted."""
        layout = common_layout({client: layouts[self._home[client]] for client in clients})
        numbers = sum(math.prod(shape) for _, *shape in layout.values())
        self.traffic = self.traffic._replace(up=self.traffic.up + 4 * numbers)  # as num_bytes
        return layout


class LocalCohort(GroupCohort):
    """All clients in one process: the oracle of every distributed cohort.

    Args:
        contributions, weighting, population: as for ``GroupCohort``.
    """

    def __init__(
        self, contributions: Sequence[Contribution], weighting: str = "samples", population: int | None = None
    ) -> None:
        device = next((value.device for one in contributions for value in one.delta.values()), None)
        super().__init__(contributions, Alone(device), weighting, population)


class Terms:
    """``fn(contribution)`` of each client here, to be read twice: ``scan`` for the largest values, then to add.

    Args:
        contributions: the clients of this rank; may be none.
        fn: pure; it is called once for each client if all terms fit into HELD_BYTES, else twice, so that memory stays
            at a few terms whatever the number of clients.
        clients: ids of all clients of the cohort.
        weights: ``[K]`` in their order, by what the terms are multiplied; None: 1.
    """

    def __init__(
        self,
        contributions: Sequence[Contribution],
        fn: Callable[[Contribution], Params],
        clients: Sequence[int],
        weights: Tensor | None = None,
    ) -> None:
        self._contributions, self._fn = contributions, fn
        self._weights = dict.fromkeys(clients, 1.0)
        if weights is not None:
            self._weights = dict(zip(clients, weights.tolist(), strict=True))
        self._held: list[Term] | None = None
        self.largest: dict[int, dict[str, float]] = {}
        """After ``scan``: by client here and name, the largest magnitude in a tensor."""

    def scan(self) -> Layout:
        """The first reading. Returns what each client here sends; empty without clients.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        layouts: dict[int, Layout] = {}
        for contribution in self._contributions:
            client, term = contribution.client_id, self._term(contribution)
            if not layouts:
                size = sum(value.numel() * value.element_size() for value in term.tensors.values())
                self._held = [] if size * len(self._contributions) <= HELD_BYTES else None
            layouts[client] = layout_of(term.tensors)
            # rounding keeps the order of numbers: the largest product is that of the largest entry, to the bit
            scale = abs(term.weight)
            self.largest[client] = {name: scale * largest_magnitude(value) for name, value in term.tensors.items()}
            for name, value in self.largest[client].items():
                if not math.isfinite(value):
                    raise AggregationError(f"client {client} brings a value that is not finite into {name!r}")
            if self._held is not None:
                self._held.append(term)
        return common_layout(layouts)

    def __iter__(self) -> Iterator[Term]:
        """The second reading; held terms are let go as they are read."""
        if self._held is None:
            yield from map(self._term, self._contributions)
        while self._held:
            yield self._held.pop(0)

    def _term(self, contribution: Contribution) -> Term:
        return Term(self._fn(contribution), self._weights[contribution.client_id])


def largest_of_all(layout: Layout, found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By name, the largest magnitude over clients."""
    return {name: max(one[name] for one in found) for name in layout}


def layout_of(params: Mapping[str, Tensor]) -> Layout:
    """The layout of what one client sends, like ``{"w": ("float32", 2, 3)}``."""
    return {name: (str(value.dtype).removeprefix("torch."), *value.shape) for name, value in params.items()}


def common_layout(layouts: Mapping[int, Layout]) -> Layout:
    """The layout of what all clients send, from that of each; empty for no clients.

    Raises:
        AggregationError: they differ; two clients and the first tensor that differs are named.

    >>> common_layout({3: {"w": ("float32", 2)}, 5: {"w": ("float32", 4)}})
    Traceback (most recent call last):
    ...
    fedcmp.errors.AggregationError: clients 3 and 5 send different tensors: 'w' is float32 [2] and float32 [4]
    """
    one, first = next(iter(layouts.items()), (0, {}))
    for other, second in layouts.items():
        for name in [*first, *second] if first != second else ():
            if first.get(name) != second.get(name):
                forms = [found.get(name, ("absent",)) for found in (first, second)]
                said = " and ".join(f"{form[0]} {list(form[1:])}" for form in forms)
                raise AggregationError(f"clients {one} and {other} send different tensors: {name!r} is {said}")
    return first


def roster(entries: Sequence[tuple[int, float]]) -> tuple[tuple[int, ...], Tensor]:
    """Client ids, sorted, and in their order p_k, float64 ``[K]`` with sum 1: the same bits in any order of entries."""
    if not entries:
        raise AggregationError("a cohort needs at least one client")
    weights = dict(sorted(entries))
    if len(weights) < len(entries):
        raise AggregationError(f"a client sent two updates in one round: {sorted(client for client, _ in entries)}")
    if not (any(weights.values()) and all(0 <= weight < math.inf for weight in weights.values())):
        raise AggregationError(f"the weights of the clients must be 0 or more and not all 0, got {weights}")
    total = math.fsum(weights.values())
    return tuple(weights), torch.tensor([weight / total for weight in weights.values()], dtype=torch.float64)
