"""A method given as a function: what a script has of its own, without a row in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, delta_of, single
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params

Method = Callable[[Params, Tensor], Params]
"""Deltas (local minus global) of K clients, stacked ``[K, ...]`` float32, and weights ``[K]`` float64 of sum 1, to one
delta."""


@dataclass(frozen=True)
class Own(Fuse):
    """``D = method(D_1 .. D_K, p)``: every delta comes to the server, which then holds K copies.

    A method with memory, or of sums only, is a class (``docs/extend.md``).
    """

    sums_only: ClassVar[bool] = False

    method: Method
    """Pure, and without memory. What it returns must have the names and shapes of the projector."""

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        mean = cohort.sum(delta_of, cohort.weights)
        deltas = cohort.gather(delta_of)
        return cohort.on_server(self._fused, deltas, cohort.weights, mean)

    def _fused(self, deltas: Params, weights: Tensor, mean: Params) -> Fused:
        found: Any = self.method(single(deltas), weights)
        if isinstance(found, dict):  # else, and for values that are no tensors, the aggregator names what came back
            found = {name: value.float() if isinstance(value, Tensor) else value for name, value in found.items()}
        return Fused(found, mean, {}, {})
