"""Fuses that treat every coordinate alike: mean, median and trimmed mean of the clients' deltas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, delta_of, gather_pieces, single
from fedcmp.aggregation.linalg import cache_columns
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Mean(Fuse):
    """``D = sum_k p_k D_k``, the fuse of FedAvg.

    The weights p_k are the cohort's: by default the share of samples that client k used in this round.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        total = cohort.sum(delta_of, cohort.weights)

        def mean() -> Fused:
            delta = single(total)
            return Fused(delta, delta, {}, {})

        return cohort.on_server(mean)


@dataclass(frozen=True)
class Median(Fuse):
    """``D = median_k D_k`` at every coordinate; for even K the mean of the two middle values.

    Fewer than half of the clients cannot move a coordinate beyond the values of the others. Clients count alike. The
    server sees every delta, in pieces of K x CHUNK numbers.

    Source: Yin et al., ICML 2018, arXiv 1803.01498, Definition 1.
    Differs from the paper: medians of deltas after many local steps, where it takes medians of gradients.
    """

    sums_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = False

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        mean = cohort.sum(delta_of, cohort.weights)
        delta = coordinate_wise(cohort, params, _median)
        return cohort.on_server(lambda: Fused(delta, mean, {}, {}))


@dataclass(frozen=True)
class TrimmedMean(Fuse):
    """At every coordinate the mean of the clients' values without the ``floor(trim K)`` largest and smallest.

    It withstands ``floor(trim K)`` Byzantine clients; where ``trim K < 1`` it is the unweighted mean. Clients count
    alike. The server sees every delta, in pieces of K x CHUNK numbers.

    Source: Yin et al., ICML 2018, arXiv 1803.01498, Definition 2.
    Differs from the paper: trims deltas after many local steps, where it trims gradients.
    """

    sums_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = False

    trim: float = 0.2
    """Share of the clients that is dropped at each end, in [0, 0.5)."""

    def __post_init__(self) -> None:
        require_number("aggregator.fuse.trim", self.trim, "[0, 0.5)")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        # 0.29 * 100 is 28.999999999999996
        cut = math.floor(self.trim * len(cohort.clients) + 1e-9)
        mean = cohort.sum(delta_of, cohort.weights)
        delta = coordinate_wise(cohort, params, partial(_inner_mean, cut))
        return cohort.on_server(lambda: Fused(delta, mean, {}, {"aggregator/trimmed": cut}))


def coordinate_wise(cohort: Cohort, params: Params, method: Callable[[Tensor], Tensor]) -> Params:
    """``method`` at every coordinate of the clients' deltas: ``[K, n]``, in any order of clients, to ``[n]``.

    Returns:
        At the server, one delta, float32.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in params}
    for name, rows in gather_pieces(cohort, params):
        parts[name].append(cohort.on_server(_apply, method, rows))
    return cohort.on_server(lambda: {name: torch.cat(parts[name]).view_as(value) for name, value in params.items()})


def _apply(method: Callable[[Tensor], Tensor], rows: Params) -> Tensor:
    return torch.cat([method(part).float() for part in cache_columns(rows["piece"])])


def ordered(values: Tensor) -> Tensor:
    """``[K, n]`` with every column sorted, smallest first and nan as infinity, by Batcher's odd-even merging (1968).

    Its comparisons do not depend on the numbers, so that each of about ``(log2 K)^2 / 2`` steps is an elementwise
    minimum and maximum of half of the rows with the other half: for few rows many times faster than ``Tensor.sort``.

    >>> ordered(torch.tensor([[3.0, 1.0], [1.0, 5.0], [2.0, 0.0]])).tolist()
    [[1.0, 0.0], [2.0, 1.0], [3.0, 5.0]]
    """
    count = len(values)
    missing = (1 << (count - 1).bit_length()) - count
    rows = torch.cat([values, values.new_full((missing, values.shape[1]), math.inf)])
    rows.nan_to_num_(math.inf, math.inf, -math.inf)  # a minimum with nan is nan, and would reach every row
    half = 1
    while half < len(rows):  # two sorted halves of each block become one
        blocks, distance = rows.unflatten(0, (-1, 2 * half)), half
        while distance:
            inner = blocks if distance == half else blocks[:, distance:-distance]
            low, high = inner.unflatten(1, (-1, 2, distance)).unbind(2)
            least = torch.minimum(low, high)
            torch.maximum(low, high, out=high)
            low.copy_(least)
            distance //= 2
        half *= 2
    return rows[:count]


def _median(values: Tensor) -> Tensor:
    rows = ordered(values)
    low, high = (len(values) - 1) // 2, len(values) // 2
    return (rows[low].double() + rows[high].double()) / 2


def _inner_mean(cut: int, values: Tensor) -> Tensor:
    return ordered(values)[cut : len(values) - cut].double().mean(dim=0)
