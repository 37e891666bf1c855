"""Nested values as JSON text and tensors, so that they cross ranks without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """A value in two parts: what ``json`` can say, and the tensors in the order in which the text names them."""

    text: str
    tensors: list[Tensor]


def pack(value: Any) -> Packed:
    """Dicts, lists, tuples, str, int, float (also nan and inf), bool, None and tensors, nested in any way.

    Raises:
        TypeError: something else is in it.

    >>> pack({"w": (1, torch.zeros(2))}).text
    '{"dict": [["w", {"tuple": [1, {"tensor": ["float32", [2]]}]}]]}'
    """
    tensors: list[Tensor] = []
    return Packed(json.dumps(_tree(value, tensors)), tensors)


def unpack(text: str, fetch: Callable[[torch.dtype, list[int]], Tensor]) -> Any:
    """The value of a text.

    Args:
        text: from ``pack``.
        fetch: dtype and shape to a tensor; called in the order of ``Packed.tensors``.

    >>> unpack(pack({1: ("a", [float("inf"), None])}).text, torch.zeros)
    {1: ('a', [inf, None])}
    """
    return _value(json.loads(text), fetch)


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes as ``uint8 [n]``, which every backend carries; a view if the tensor is contiguous.

    >>> as_bytes(torch.tensor(1.0)).tolist()
    [0, 0, 128, 63]
    """
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _tree(value: Any, tensors: list[Tensor]) -> Any:
    if value is None or isinstance(value, str | int | float):  # a bool is an int
        return value
    if isinstance(value, list):
        return [_tree(one, tensors) for one in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):  # a named tuple would arrive without its names
        return {"tuple": [_tree(one, tensors) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[_tree(key, tensors), _tree(one, tensors)] for key, one in value.items()]}
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        tensors.append(value)
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape)]}
    raise TypeError(
        f"dicts, lists, tuples, text, numbers, None and dense tensors cross ranks; got {type(value).__name__}"
    )


def _value(tree: Any, fetch: Callable[[torch.dtype, list[int]], Tensor]) -> Any:
    if isinstance(tree, list):
        return [_value(one, fetch) for one in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return fetch(getattr(torch, content[0]), content[1])
    if kind == "tuple":
        return tuple(_value(one, fetch) for one in content)
    return {_value(key, fetch): _value(one, fetch) for key, one in content}
