"""What the coordinate-wise methods share: one function of K numbers, at every coordinate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Cohort
from fedcmp.aggregation.diagnostics import CHUNK, piece
from fedcmp.types import Params


def coordinate_wise(cohort: Cohort, params: Params, method: Callable[[Tensor], Tensor]) -> Params:
    """``method`` at every coordinate of the clients' deltas, gathered in pieces: K x CHUNK numbers at a time.

    Args:
        cohort: the clients of a round.
        params: the parameters that the deltas belong to, for their names and shapes.
        method: the clients' values ``[K, n]``, in any order of clients, to one value each ``[n]``.

    Returns:
        At the server, one delta, float32.
    """
    found: Params = {}
    for name, value in params.items():
        parts = []
        for begin in range(0, value.numel(), CHUNK):
            rows = cohort.gather(partial(piece, name, begin))
            parts.append(cohort.on_server(_apply, method, rows))
        found[name] = cohort.on_server(_join, parts, value)
    return found


def _apply(method: Callable[[Tensor], Tensor], rows: Params) -> Tensor:
    return method(rows["piece"]).float()


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts).view_as(like)
