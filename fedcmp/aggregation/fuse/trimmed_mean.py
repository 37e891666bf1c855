"""The coordinate-wise trimmed mean of the clients' deltas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, weighted_sum
from fedcmp.aggregation.fuse.coordinates import coordinate_wise
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class TrimmedMean(Fuse):
    """At every coordinate the mean of the clients' values without the ``floor(trim K)`` largest and smallest.

    It withstands ``floor(trim K)`` Byzantine clients; where ``trim K < 1`` it is the unweighted mean. Clients count
    alike. The server sees every delta, in pieces of K x CHUNK numbers.

    Source: Yin et al., ICML 2018, arXiv 1803.01498, Definition 2.
    Differs from the paper: trims deltas after many local steps, where it trims gradients.

    >>> import torch
    >>> from fedcmp.aggregation.contribution import Contribution
    >>> from fedcmp.distributed.cohort import LocalCohort
    >>> clients = [Contribution(k, {"bias": torch.tensor([value])}) for k, value in enumerate([1.0, 9e9, 2.0, 4.0])]
    >>> TrimmedMean(trim=0.25).fuse(LocalCohort(clients), {"bias": torch.zeros(1)}, {}).delta
    {'bias': tensor([3.])}
    """

    sums_only: ClassVar[bool] = False

    trim: float = 0.2
    """Share of the clients that is dropped at each end, in [0, 0.5)."""

    def __post_init__(self) -> None:
        require_number("aggregator.fuse.trim", self.trim, "[0, 0.5)")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The trimmed mean."""
        # 0.29 * 100 is 28.999999999999996
        cut = math.floor(self.trim * len(cohort.clients) + 1e-9)
        mean = weighted_sum(cohort, lambda contribution: contribution.delta)
        delta = coordinate_wise(cohort, params, partial(_inner_mean, cut))
        return cohort.on_server(lambda: Fused(delta, mean, {}, {"aggregator/trimmed": cut}))


def _inner_mean(cut: int, values: Tensor) -> Tensor:
    ordered = values.sort(dim=0).values
    return ordered[cut : len(values) - cut].double().mean(dim=0)
