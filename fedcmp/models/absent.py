"""Weights that a checkpoint lacks. transformers draws them at random and only warns; here they are an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedcmp.errors import ConfigError

SHOWN = 4
"""How many names an error lists."""


class Absent(NamedTuple):
    """What a checkpoint does not give to a model, by the model's own names."""

    why: dict[str, str]
    """The weights that it lacks, or has in another shape: name to what was found."""
    unknown: tuple[str, ...]
    """What it holds that the model has no place for."""


def load_whole(loader: Any, path: str, **options: Any) -> tuple[Any, Absent]:
    """A model of transformers, and the weights that its files did not give; parameters among them are zero.

    A head that is tied to the embedding is not missing: transformers knows that.

    Args:
        loader: a class with ``from_pretrained``.
        path: folder or hub id.
        options: go to ``from_pretrained``.

    Raises:
        Exception: whatever transformers raises.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = loader.from_pretrained(path, **options)
    absent = _absent(found)
    with torch.no_grad():
        for name, value in model.named_parameters(remove_duplicate=False):
            if name in absent.why:
                value.zero_()  # as good as any, and the same each time: hashes of the weights must not change
    return model, absent


def refuse(key: str, name: str, model: nn.Module, absent: Absent, needed: Iterable[str]) -> None:
    """Raises if a weight is needed.

    Raises:
        ConfigError: it names key, model and weights.
    """
    lacking = sorted(needed)
    if not lacking:
        return
    kind, missing = type(model).__name__, [f"{one}{absent.why[one]}" for one in lacking]
    more = f"; its files hold {_listed(absent.unknown)}, which a {kind} has no place for" if absent.unknown else ""
    raise ConfigError(
        f"{key}: {name} lacks weights of its {kind}: {_listed(missing)}{more}; expected every weight that its "
        "config.json promises: is it complete, and saved by this class?"
    )


def needed_by(model: nn.Module, absent: Absent, run: Callable[[], Tensor]) -> list[str]:
    """Those of the absent weights that an output depends on: heads and blocks that are never read may be absent.

    Args:
        model: holds the weights, frozen; it is left so.
        run: computes the output.
    """
    held = [(name, value) for name, value in _tensors(model) if name in absent.why]
    params = [(name, value) for name, value in held if isinstance(value, nn.Parameter)]
    needed = [name for name, value in held if not isinstance(value, nn.Parameter) and value.is_floating_point()]
    for _, value in params:
        value.requires_grad_(True)
    try:
        with torch.enable_grad():
            output = run()
        values = [value for _, value in params]
        if values and output.requires_grad:
            gradients = torch.autograd.grad(output.sum(), values, allow_unused=True)
            needed += [name for (name, _), one in zip(params, gradients, strict=True) if one is not None]
    finally:
        for _, value in params:
            value.requires_grad_(False)
    return needed


def _absent(found: Mapping[str, Any]) -> Absent:
    why = dict.fromkeys(map(str, found["missing_keys"]), "")
    for name, there, wanted in found["mismatched_keys"]:
        why[str(name)] = f" ({list(there)} where {list(wanted)} is needed)"
    return Absent(why, tuple(sorted(map(str, found["unexpected_keys"]))))


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Weights and buffers under all their names, tied ones too."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _listed(names: Iterable[str]) -> str:
    """
    >>> _listed("abcdef")
    'a, b, c, d and 2 more'
    """
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
