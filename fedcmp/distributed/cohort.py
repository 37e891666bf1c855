"""Cohorts: the clients of one round, as the server may see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch

from fedcmp.aggregation.contribution import WEIGHTINGS, Contribution, Traffic, num_bytes
from fedcmp.distributed.exact import from_fixed, scale_exponents, sum_fixed
from fedcmp.distributed.failures import attempt
from fedcmp.distributed.layout import (
    Layout,
    batches,
    flatten,
    layout_of,
    require_same_layout,
    sizes_of,
    unflatten,
    zeros_like_layout,
)
from fedcmp.distributed.roster import choose, make_roster
from fedcmp.distributed.terms import Terms
from fedcmp.distributed.wire import Wire
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

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        """Adds exactly: the same bits as on any number of ranks (``exact.py``). ``fn`` may be called twice a client.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        terms = Terms(self._contributions, fn)
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
        by_id = dict(zip(self.clients, self._contributions, strict=True))
        parts = [fn(by_id[client]) for client in chosen]
        layout = layout_of(parts[0])
        for client, part in zip(chosen, parts, strict=True):
            require_same_layout(chosen[0], layout, client, layout_of(part))
        self.traffic = sent(self.traffic, layout)
        return {name: torch.stack([part[name] for part in parts]) for name in layout}

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn``; there is one process."""
        return fn(*args)

    def share(self, value: T) -> T:
        """The value; there is one process."""
        self.traffic = _got(self.traffic, value)
        return value


class GroupCohort:
    """The clients of all ranks, each where it was trained. Every method, and the constructor, is collective.

    Same results, errors and traffic as a ``LocalCohort`` of all contributions, bit for bit, whatever the number of
    ranks and wherever the clients are. What user code raises on one rank, all ranks raise (``Wire.agree``).

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
        told = wire.collect_from(lambda: ([(one.client_id, count(one)) for one in self._contributions], population))
        entries = sorted((*entry, rank) for rank, (brought, _) in enumerate(told) for entry in brought)
        self.clients, self.weights = make_roster([(client, weight) for client, weight, _ in entries])
        self._home = {client: rank for client, _, rank in entries}
        self.population = len(self.clients) if told[0][1] is None else told[0][1]
        self.traffic = Traffic()

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        """Adds exactly, at the server; elsewhere the result is empty. ``fn`` may be called twice a client.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        wire = self._wire
        terms = Terms(self._contributions, fn)
        # ranks without clients must know what the others send
        layouts = wire.collect_from(terms.scan)
        first = self.clients[0]
        layout = layouts[self._home[first]]
        for client in self.clients:
            require_same_layout(first, layout, client, layouts[self._home[client]])
        self.traffic = sent(self.traffic, layout)
        here = torch.tensor([terms.largest.get(name, 0.0) for name in layout], dtype=torch.float64)
        exponents = scale_exponents(dict(zip(layout, wire.largest(here).tolist(), strict=True)), len(self.clients))
        totals = wire.together(lambda: sum_fixed(terms, exponents))
        result: Params = {}
        for names in batches(layout, BATCH):
            total = wire.total(flatten(layout, names, totals, wire.device), to_server=True)
            if wire.rank == 0:
                for name, part in unflatten(layout, names, total).items():
                    result[name] = from_fixed(part, exponents[name])
        return result

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Stacks ``[K, ...]`` at the server, in the order of ``clients``; elsewhere the result is empty.

        One client after the other is computed, sent to the server and forgotten.

        Raises:
            AggregationError: a client is not in the cohort, or clients send different tensors.
        """
        wire, chosen = self._wire, choose(self.clients, clients)
        by_id, first = {one.client_id: one for one in self._contributions}, chosen[0]
        # the server must know what it will get before it gets it
        layout = wire.collect_from(lambda: layout_of(fn(by_id[first])) if first in by_id else {})[self._home[first]]
        self.traffic = sent(self.traffic, layout)
        stacked = wire.together(lambda: zeros_like_layout(layout, len(chosen) if wire.rank == 0 else 0, wire.device))
        failure: BaseException | None = None
        for place, client in enumerate(chosen):
            part: Params | None = {}
            if client in by_id:
                part, error = attempt(partial(_checked, fn, by_id[client], first, layout))
                failure = failure or error
            if part is None:  # the server waits for a row: it gets zeros, and then the exception
                part = {name: value[0] for name, value in zeros_like_layout(layout, 1, wire.device).items()}
            self._bring(part, stacked, place, self._home[client])
        wire.agree(failure)
        return stacked if wire.rank == 0 else {}

    def _bring(self, part: Params, stacked: Params, place: int, home: int) -> None:
        for name, rows in stacked.items():
            if self._wire.rank == 0 == home:
                rows[place] = part[name]
            elif self._wire.rank == 0:
                self._wire.receive(rows[place], home)
            elif self._wire.rank == home:
                self._wire.send(part[name])

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls ``fn`` at the server; elsewhere the result is None. ``fn`` must not use the cohort's collectives."""
        return cast(T, self._wire.together(lambda: fn(*args) if self._wire.rank == 0 else None))

    def share(self, value: T) -> T:
        """The server's value, on every rank."""
        value = self._wire.share(value)
        self.traffic = _got(self.traffic, value)
        return value


def _checked(fn: Callable[[Contribution], Params], contribution: Contribution, first: int, layout: Layout) -> Params:
    part = fn(contribution)
    require_same_layout(first, layout, contribution.client_id, layout_of(part))
    return part


def sent(traffic: Traffic, layout: Layout) -> Traffic:
    """The traffic after each client has sent such tensors into a sum or a gather."""
    return traffic._replace(up=traffic.up + 4 * sum(sizes_of(layout).values()))  # as num_bytes


def _got(traffic: Traffic, value: Any) -> Traffic:
    return traffic._replace(down=traffic.down + num_bytes(value))
