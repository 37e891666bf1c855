"""The terms of a sum over clients, on the rank where the clients were trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from fedcmp.aggregation.contribution import Contribution, Weighted
from fedcmp.distributed.exact import Product, Term, largest_magnitude
from fedcmp.distributed.layout import Layout, layout_of, require_same_layout
from fedcmp.errors import AggregationError
from fedcmp.types import Params

HELD_BYTES = 6 * 2**30
"""Terms that need no more than this together are held between the two readings of a sum; others are computed twice."""


class Terms:
    """``fn(contribution)`` of each client here, to be read twice: ``scan`` for the largest values, then to add.

    Args:
        contributions: the clients of this rank; may be none.
        fn: pure; it is called once for each client if all terms fit into HELD_BYTES, else twice, so that memory stays
            at a few terms whatever the number of clients.
    """

    def __init__(self, contributions: Sequence[Contribution], fn: Callable[[Contribution], Params]) -> None:
        self._contributions = contributions
        self._fn = fn
        self._held: list[Term] | None = None
        self.largest: dict[str, float] = {}
        """After ``scan``: the largest magnitude of each tensor over the clients here."""
        self.largest_of: dict[int, dict[str, float]] = {}
        """The same, by client."""

    def scan(self) -> Layout:
        """The first reading. Returns what each client here sends; empty without clients.

        Raises:
            AggregationError: clients send different tensors, or a value that is not finite.
        """
        layout: Layout = {}
        for place, contribution in enumerate(self._contributions):
            term = self._term(contribution)
            if place == 0:
                layout = _layout(term)
                size = sum(_held_bytes(value) for value in term.values())
                self._held = [] if size * len(self._contributions) <= HELD_BYTES else None
            require_same_layout(self._contributions[0].client_id, layout, contribution.client_id, _layout(term))
            self._compare(contribution.client_id, term)
            if self._held is not None:
                self._held.append(term)
        return layout

    def _term(self, contribution: Contribution) -> Term:
        if not isinstance(self._fn, Weighted):
            return self._fn(contribution)
        values, weight = self._fn.factors(contribution)
        return {name: Product(value, weight) for name, value in values.items()}

    def _compare(self, client: int, term: Term) -> None:
        for name, value in term.items():
            largest = largest_magnitude(value)
            if not math.isfinite(largest):
                raise AggregationError(f"client {client} brings a value that is not finite into the sum of {name!r}")
            self.largest[name] = max(self.largest.get(name, 0.0), largest)
            self.largest_of.setdefault(client, {})[name] = largest

    def __iter__(self) -> Iterator[Term]:
        """The second reading; held terms are let go as they are read."""
        if self._held is None:
            yield from map(self._term, self._contributions)
        while self._held:
            yield self._held.pop(0)


def _layout(term: Term) -> Layout:
    """Of products, too: they are float64."""
    values = {name: one.value if isinstance(one, Product) else one for name, one in term.items()}
    found = layout_of(values)
    return {name: ("float64", *form[1:]) if isinstance(term[name], Product) else form for name, form in found.items()}


def _held_bytes(one: torch.Tensor | Product) -> int:
    value = one.value if isinstance(one, Product) else one
    return value.numel() * value.element_size()
