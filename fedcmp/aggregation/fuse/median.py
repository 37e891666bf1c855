"""The coordinate-wise median of the clients' deltas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, weighted_sum
from fedcmp.aggregation.fuse.coordinates import coordinate_wise
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Median(Fuse):
    """``D = median_k D_k`` at every coordinate; for even K the mean of the two middle values.

    Fewer than half of the clients cannot move a coordinate beyond the values of the others. Clients count alike. The
    server sees every delta, in pieces of K x CHUNK numbers.

    Source: Yin et al., ICML 2018, arXiv 1803.01498, Definition 1.
    Differs from the paper: medians of deltas after many local steps, where it takes medians of gradients.

    >>> import torch
    >>> from fedcmp.aggregation.contribution import Contribution
    >>> from fedcmp.distributed.cohort import LocalCohort
    >>> clients = [Contribution(k, {"bias": torch.tensor([value])}) for k, value in enumerate([1.0, 9e9, 2.0, 3.0])]
    >>> Median().fuse(LocalCohort(clients), {"bias": torch.zeros(1)}, {}).delta
    {'bias': tensor([2.5000])}
    """

    sums_only: ClassVar[bool] = False

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The median."""
        mean = weighted_sum(cohort, lambda contribution: contribution.delta)
        delta = coordinate_wise(cohort, params, _median)
        return cohort.on_server(lambda: Fused(delta, mean, {}, {}))


def _median(values: Tensor) -> Tensor:
    ordered = values.sort(dim=0).values
    low, high = (len(values) - 1) // 2, len(values) // 2
    return (ordered[low].double() + ordered[high].double()) / 2
