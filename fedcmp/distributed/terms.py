"""What clients send into a sum: their terms on this rank, and the dtypes and shapes of the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.exact import Term, largest_magnitude
from fedcmp.errors import AggregationError
from fedcmp.types import Params

HELD_BYTES = 6 * 2**30
"""Terms that need no more than this together are held between the two readings of a sum; others are computed twice."""

Layout = dict[str, tuple[Any, ...]]
"""By name, the dtype (as text) and the shape of a tensor, as plain data that may cross ranks."""


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
