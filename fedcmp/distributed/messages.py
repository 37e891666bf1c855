"""Values and exceptions as JSON text and tensors, so that they cross ranks without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fedcmp import errors

T = TypeVar("T")

MARK = "failed: "
"""What the text of an exception begins with, and no JSON does."""


class Packed(NamedTuple):
    """A value in two parts: JSON text, and the tensors in the order in which the text names them."""

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
    """The tensor's bytes as ``uint8 [n]``, which every backend carries; a view if the tensor is contiguous."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


class Agreeing(Protocol):
    """Ranks that can agree on an exception: a ``Wire`` or a ``Team``."""

    def agree(self, error: BaseException | None) -> None:
        """Raises on every rank the exception of any rank."""


def together(ranks: Agreeing, step: Callable[[], T]) -> T:
    """What ``step`` returns on this rank; if it raises on any rank, all ranks raise. No collectives inside."""
    result, error = attempt(step)
    ranks.agree(error)
    return cast(T, result)


def attempt(step: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What ``step`` returns and None, or None and what it raises, so that the other ranks need not wait."""
    try:
        return step(), None
    except BaseException as error:
        return None, error


def write_failure(error: BaseException) -> str:
    """The exception as text, for ``raise_first`` on another rank: its type, message and plain fields."""
    alone = len(error.args) == 1 and isinstance(error.args[0], str)  # str(KeyError("x")) has quotes of its own
    message = error.args[0] if alone else str(error)
    fields = {key: value for key, value in vars(error).items() if isinstance(value, str | int | float)}
    return MARK + json.dumps([type(error).__name__, message, fields])


def raise_first(texts: Sequence[str], rank: int, error: BaseException | None) -> None:
    """Raises the failure of the lowest rank that has one; returns if there is none.

    Classes of ``fedcmp.errors`` arrive as themselves with their fields, and so does KeyboardInterrupt; others as a
    RuntimeError that names the type.

    Args:
        texts: what each rank sent.
        rank: this rank, which raises its own exception where it is the same.
        error: this rank's own exception.

    >>> raise_first(["[1]", write_failure(ValueError("too few")), write_failure(OSError("disk"))], 0, None)
    Traceback (most recent call last):
    ...
    RuntimeError: ValueError: too few (on rank 1)
    """
    failed = [text for text in texts if text.startswith(MARK)]
    if not failed:
        return
    ranks = tuple(place for place, text in enumerate(texts) if text == failed[0])
    if error is not None and rank in ranks:
        vars(error)["met_on"] = ranks
        raise error
    name, message, fields = json.loads(failed[0].removeprefix(MARK))
    message = f"{message} (on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))})".lstrip()
    kind = KeyboardInterrupt if name == "KeyboardInterrupt" else getattr(errors, name, None)
    if kind is None:
        kind, message = RuntimeError, f"{name}: {message}"
    found: BaseException = kind.__new__(kind)
    found.args = (message,)
    vars(found).update(fields, met_on=ranks)
    raise found from error


def met_on(error: BaseException) -> tuple[int, ...]:
    """The ranks that met an error on which all ranks agreed; empty if they did not, or if there is one rank."""
    ranks: tuple[int, ...] = vars(error).get("met_on", ())
    return ranks


def _tree(value: Any, tensors: list[Tensor]) -> Any:
    if value is None or isinstance(value, str | int | float):  # a bool is an int
        return value
    if isinstance(value, list):
        return [_tree(one, tensors) for one in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):  # a named tuple would arrive without its names
        return {"tuple": [_tree(one, tensors) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[_tree(key, tensors), _tree(one, tensors)] for key, one in value.items()]}
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape)]}
    raise TypeError(f"plain containers, text, numbers, None and tensors cross ranks; got {type(value).__name__}")


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
