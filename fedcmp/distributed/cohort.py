"""Cohorts: the clients of one round, as the server may see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch

from fedcmp.aggregation.contribution import WEIGHTINGS, Contribution, Traffic, num_bytes
from fedcmp.distributed.exact import from_fixed, scale_exponents, sum_fixed
from fedcmp.distributed.messages import together
from fedcmp.distributed.terms import (
    Layout,
    Terms,
    batches,
    flatten,
    layout_of,
    require_same_layout,
    sizes_of,
    unflatten,
)
from fedcmp.distributed.wire import Wire
from fedcmp.errors import AggregationError
from fedcmp.types import Params

T = TypeVar("T")

BATCH = 2**16
"""Numbers of a sum that travel to the server in one message; larger tensors travel alone."""


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
        self._contributions = sorted(contributions, key=lambda one: one.client_id)
        count = WEIGHTINGS[weighting]
        self.clients, self.weights = make_roster([(one.client_id, count(one)) for one in self._contributions])
        self.population = len(self.clients) if population is None else population
        self.traffic = Traffic()

    def sum(self, fn: Callable[[Contribution], Params], weights: torch.Tensor | None = None) -> Params:
        """Adds exactly: the same bits as on any number of ranks (``exact.py``). ``fn`` may be called twice a client.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        terms = Terms(self._contributions, fn, by_client(self.clients, weights))
        layout = terms.scan()
        self.traffic = sent(self.traffic, layout)
        exponents = scale_exponents(terms.largest, len(self.clients))
        totals = sum_fixed(terms, exponents)
        return {name: from_fixed(totals.pop(name), exponents[name]) for name in layout}

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Stacks ``[K, ...]`` in the order of ``clients``.

        Raises:
            AggregationError: a client is not in the cohort, or clients send different tensors.
        """
        chosen = choose(self.clients, clients)
        parts, layout = _parts(self._contributions, chosen, fn)
        self.traffic = sent(self.traffic, layout)
        return {name: torch.stack([parts[client][name] for client in chosen]) for name in layout}

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn``; there is one process."""
        return fn(*args)

    def share(self, value: T) -> T:
        """The value; there is one process."""
        self.traffic = _got(self.traffic, value)
        return value


class GroupCohort:
    """The clients of all ranks, each where it was trained. Every method, and the constructor, is collective.

    Same results and traffic as a ``LocalCohort`` of all contributions, bit for bit, whatever the number of ranks and
    wherever the clients are. What user code raises on one rank, all ranks raise (``Wire.agree``).

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
        wire: Wire,
        weighting: str = "samples",
        population: int | None = None,
    ) -> None:
        self._wire = wire
        self._contributions = sorted(contributions, key=lambda one: one.client_id)
        count = WEIGHTINGS[weighting]
        found = wire.collect_from(lambda: ([(one.client_id, count(one)) for one in self._contributions], population))
        entries = sorted((*entry, rank) for rank, (brought, _) in enumerate(found) for entry in brought)
        self.clients, self.weights = make_roster([(client, weight) for client, weight, _ in entries])
        self._home = {client: rank for client, _, rank in entries}
        self.population = len(self.clients) if found[0][1] is None else found[0][1]
        self.traffic = Traffic()

    def sum(self, fn: Callable[[Contribution], Params], weights: torch.Tensor | None = None) -> Params:
        """Adds exactly, at the server; elsewhere the result is empty. ``fn`` may be called twice a client.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        wire = self._wire
        terms = Terms(self._contributions, fn, by_client(self.clients, weights))
        layout = self._common(wire.collect_from(terms.scan), self.clients)  # ranks without clients must know it, too
        here = torch.tensor([terms.largest.get(name, 0.0) for name in layout], dtype=torch.float64)
        exponents = scale_exponents(dict(zip(layout, wire.largest(here).tolist(), strict=True)), len(self.clients))
        totals = together(wire, lambda: sum_fixed(terms, exponents))
        result: Params = {}
        for names in batches(layout, BATCH):
            total = wire.total(flatten(layout, names, totals, wire.device), to_server=True)
            if wire.rank == 0:
                for name, part in unflatten(layout, names, total).items():
                    result[name] = from_fixed(part, exponents[name])
        return result

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Stacks ``[K, ...]`` at the server, in the order of ``clients``; elsewhere the result is empty.

        Raises:
            AggregationError: a client is not in the cohort, or clients send different tensors.
        """
        wire, chosen = self._wire, choose(self.clients, clients)
        parts: dict[int, Params] = {}

        def compute() -> Layout:
            found, layout = _parts(self._contributions, chosen, fn)
            parts.update(found)
            return layout

        layout = self._common(wire.collect_from(compute), chosen)
        if wire.rank > 0:
            for client in chosen:
                for name in layout if client in parts else ():
                    wire.send(parts[client][name])
            return {}
        stacked = {
            name: torch.empty((len(chosen), *shape), dtype=getattr(torch, dtype), device=wire.device)
            for name, (dtype, *shape) in layout.items()
        }
        for place, client in enumerate(chosen):
            for name, rows in stacked.items():
                if client in parts:
                    rows[place] = parts[client][name]
                else:
                    wire.receive(rows[place], self._home[client])
        return stacked

    def _common(self, layouts: Sequence[Layout], clients: Sequence[int]) -> Layout:
        """The layout of what all ``clients`` send, from those of the ranks where they are; it is counted."""
        first = clients[0]
        layout = layouts[self._home[first]]
        for client in clients:
            require_same_layout(first, layout, client, layouts[self._home[client]])
        self.traffic = sent(self.traffic, layout)
        return layout

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn`` at the server; elsewhere the result is None. ``fn`` must not use the cohort's collectives."""
        return cast(T, together(self._wire, lambda: fn(*args) if self._wire.rank == 0 else None))

    def share(self, value: T) -> T:
        """The server's value, on every rank."""
        value = self._wire.share(value)
        self.traffic = _got(self.traffic, value)
        return value


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
    """
    chosen = list(known if wanted is None else wanted)
    if not chosen or not set(chosen) <= set(known):
        raise AggregationError(f"gathered must be one or more of the clients {list(known)}, got {chosen}")
    return chosen


def by_client(clients: Sequence[int], weights: torch.Tensor | None) -> dict[int, float] | None:
    """The weights of a sum, ``[K]`` in the order of ``clients``, by client."""
    return None if weights is None else dict(zip(clients, weights.tolist(), strict=True))


def sent(traffic: Traffic, layout: Layout) -> Traffic:
    """The traffic after each client has sent such tensors into a sum or a gather."""
    return traffic._replace(up=traffic.up + 4 * sum(sizes_of(layout).values()))  # as num_bytes


def _parts(
    contributions: Sequence[Contribution], chosen: Sequence[int], fn: Callable[[Contribution], Params]
) -> tuple[dict[int, Params], Layout]:
    """What those of the chosen clients that are here send, and its layout; empty without any."""
    by_id = {one.client_id: one for one in contributions}
    here = [client for client in chosen if client in by_id]
    parts = {client: fn(by_id[client]) for client in here}
    layout = layout_of(parts[here[0]]) if here else {}
    for client in here:
        require_same_layout(here[0], layout, client, layout_of(parts[client]))
    return parts, layout


def _got(traffic: Traffic, value: Any) -> Traffic:
    return traffic._replace(down=traffic.down + num_bytes(value))
