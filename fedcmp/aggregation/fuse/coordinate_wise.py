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
from fedcmp.aggregation.contribution import Cohort, delta_of, single
from fedcmp.aggregation.diagnostics import CHUNK, piece
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Mean(Fuse):
    """``D = sum_k p_k D_k``, the fuse of FedAvg.

    The weights p_k are the cohort's: by default the share of samples that client k used in this round.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        return cohort.on_server(_mean, cohort.sum(delta_of, cohort.weights))


@dataclass(frozen=True)
class Median(Fuse):
    """``D = median_k D_k`` at every coordinate; for even K the mean of the two middle values.

    Fewer than half of the clients cannot move a coordinate beyond the values of the others. Clients count alike. The
    server sees every delta, in pieces of K x CHUNK numbers.

    Source: Yin et al., ICML 2018, arXiv 1803.01498, Definition 1.
    Differs from the paper: medians of deltas after many local steps, where it takes medians of gradients.

    >>> from fedcmp.aggregation.contribution import Contribution
    >>> from fedcmp.distributed.cohort import LocalCohort
    >>> clients = [Contribution(k, {"bias": torch.tensor([value])}) for k, value in enumerate([1.0, 9e9, 2.0, 3.0])]
    >>> Median().fuse(LocalCohort(clients), {"bias": torch.zeros(1)}, {}).delta
    {'bias': tensor([2.5000])}
    """

    sums_only: ClassVar[bool] = False

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


def _mean(total: Params) -> Fused:
    delta = single(total)
    return Fused(delta, delta, {}, {})


def _median(values: Tensor) -> Tensor:
    ordered = values.sort(dim=0).values
    low, high = (len(values) - 1) // 2, len(values) // 2
    return (ordered[low].double() + ordered[high].double()) / 2


def _inner_mean(cut: int, values: Tensor) -> Tensor:
    ordered = values.sort(dim=0).values
    return ordered[cut : len(values) - cut].double().mean(dim=0)


def _apply(method: Callable[[Tensor], Tensor], rows: Params) -> Tensor:
    return method(rows["piece"]).float()


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts).view_as(like)
