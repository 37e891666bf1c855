"""What clients send into a sum: their terms on this rank, and the names, types and shapes of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
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
        weights: by client, by what its term is multiplied; None: 1.
    """

    def __init__(
        self,
        contributions: Sequence[Contribution],
        fn: Callable[[Contribution], Params],
        weights: Mapping[int, float] | None = None,
    ) -> None:
        self._contributions, self._fn, self._weights = contributions, fn, weights
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
                layout = layout_of(term.tensors)
                size = sum(value.numel() * value.element_size() for value in term.tensors.values())
                self._held = [] if size * len(self._contributions) <= HELD_BYTES else None
            first, client = self._contributions[0].client_id, contribution.client_id
            require_same_layout(first, layout, client, layout_of(term.tensors))
            self._compare(client, term)
            if self._held is not None:
                self._held.append(term)
        return layout

    def _term(self, contribution: Contribution) -> Term:
        weight = 1.0 if self._weights is None else self._weights[contribution.client_id]
        return Term(self._fn(contribution), weight)

    def _compare(self, client: int, term: Term) -> None:
        for name, value in term.tensors.items():
            # rounding keeps the order of numbers: the largest product is that of the largest entry, to the bit
            largest = abs(term.weight) * largest_magnitude(value)
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


def layout_of(params: Mapping[str, Tensor]) -> Layout:
    """The layout of what one client sends.

    >>> layout_of({"w": torch.zeros(2, 3)})
    {'w': ('float32', 2, 3)}
    """
    return {name: (str(value.dtype).removeprefix("torch."), *value.shape) for name, value in params.items()}


def require_same_layout(one: int, first: Layout, other: int, second: Layout) -> None:
    """Checks that two clients send the same tensors.

    Raises:
        AggregationError: they do not; it names the first tensor that differs.

    >>> require_same_layout(3, {"w": ("float32", 2)}, 5, {"w": ("float32", 4)})
    Traceback (most recent call last):
    ...
    fedcmp.errors.AggregationError: clients 3 and 5 send different tensors: 'w' is float32 [2] and float32 [4]
    """
    for name in [*first, *second]:
        if first.get(name) != second.get(name):
            forms = [found.get(name, ("absent",)) for found in (first, second)]
            said = " and ".join(f"{form[0]} {list(form[1:])}" for form in forms)
            raise AggregationError(f"clients {one} and {other} send different tensors: {name!r} is {said}")


def sizes_of(layout: Layout) -> dict[str, int]:
    """The number of entries of each tensor."""
    return {name: math.prod(shape) for name, (_, *shape) in layout.items()}


def batches(layout: Layout, most: int) -> list[list[str]]:
    """Neighbours that travel in one message: up to ``most`` entries together, larger tensors alone.

    >>> batches({"a": ("int8", 2), "b": ("int8", 1), "c": ("int8", 9), "d": ("int8",)}, most=3)
    [['a', 'b'], ['c'], ['d']]
    """
    found: list[list[str]] = []
    room = -1
    for name, size in sizes_of(layout).items():
        if size > room:
            found.append([])
            room = most
        found[-1].append(name)
        room -= size
    return found


def flatten(layout: Layout, names: Sequence[str], values: Params, device: torch.device) -> Tensor:
    """The int64 tensors ``names``, taken out of ``values``, one after the other; zeros for those that are not there."""
    sizes = sizes_of(layout)
    absent = {name: torch.zeros(sizes[name], dtype=torch.int64, device=device) for name in names if name not in values}
    parts = [absent[name] if name in absent else values.pop(name).reshape(-1).to(device) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def unflatten(layout: Layout, names: Sequence[str], flat: Tensor) -> dict[str, Tensor]:
    """What ``flatten`` has put together: views of it.

    >>> layout = {"a": ("int64", 2, 1), "b": ("int64",)}
    >>> flat = flatten(layout, ["a", "b"], {"a": torch.tensor([[1], [2]])}, torch.device("cpu"))
    >>> unflatten(layout, ["a", "b"], flat)
    {'a': tensor([[1],
            [2]]), 'b': tensor(0)}
    """
    parts = flat.split([sizes_of(layout)[name] for name in names])
    return {name: part.view(layout[name][1:]) for name, part in zip(names, parts, strict=True)}
