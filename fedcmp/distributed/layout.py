"""What clients send, without the numbers: names, types and shapes of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedcmp.errors import AggregationError
from fedcmp.types import Params

Layout = dict[str, tuple[Any, ...]]
"""By name, the dtype (as text) and the shape of a tensor, as plain data that may cross ranks."""


def layout_of(params: Params) -> Layout:
    """The layout of what one client sends.

    >>> layout_of({"w": torch.zeros(2, 3)})
    {'w': ('float32', 2, 3)}
    """
    return {name: (str(value.dtype).removeprefix("torch."), *value.shape) for name, value in params.items()}


def sizes_of(layout: Layout) -> dict[str, int]:
    """The number of entries of each tensor.

    >>> sizes_of({"w": ("int8", 2, 3), "one": ("int8",)})
    {'w': 6, 'one': 1}
    """
    return {name: math.prod(shape) for name, (_, *shape) in layout.items()}


def zeros_like_layout(layout: Layout, rows: int, device: torch.device) -> Params:
    """Zeros in place of what ``rows`` clients send, stacked.

    >>> zeros_like_layout({"w": ("int8", 2)}, rows=1, device=torch.device("cpu"))
    {'w': tensor([[0, 0]], dtype=torch.int8)}
    """
    return {
        name: torch.zeros((rows, *shape), dtype=getattr(torch, dtype), device=device)
        for name, (dtype, *shape) in layout.items()
    }


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
            said = f"{_text(first.get(name))} and {_text(second.get(name))}"
            raise AggregationError(f"clients {one} and {other} send different tensors: {name!r} is {said}")


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


def unflatten(layout: Layout, names: Sequence[str], flat: Tensor) -> Mapping[str, Tensor]:
    """What ``flatten`` has put together: views of it.

    >>> layout = {"a": ("int64", 2, 1), "b": ("int64",)}
    >>> flat = flatten(layout, ["a", "b"], {"a": torch.tensor([[1], [2]])}, torch.device("cpu"))
    >>> unflatten(layout, ["a", "b"], flat)
    {'a': tensor([[1],
            [2]]), 'b': tensor(0)}
    """
    sizes = sizes_of(layout)
    parts = flat.split([sizes[name] for name in names])
    return {name: part.view(layout[name][1:]) for name, part in zip(names, parts, strict=True)}


def _text(form: tuple[Any, ...] | None) -> str:
    return "absent" if form is None else f"{form[0]} {list(form[1:])}"
