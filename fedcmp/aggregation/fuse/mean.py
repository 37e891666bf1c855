"""The weighted mean of the clients' deltas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.base import Cohort, single, weighted_sum
from fedcmp.aggregation.rules import Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Mean:
    """``D = sum_k p_k D_k``, the fuse of FedAvg.

    The weights p_k are the cohort's: by default the share of samples that client k used in this round.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    sums_only: ClassVar[bool] = True
    least_clients: ClassVar[int] = 1
    finds_basis: ClassVar[bool] = False

    def init(self, params: Params) -> State:
        """The mean has no memory."""
        return {}

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The mean."""
        return cohort.on_server(_fused, weighted_sum(cohort, lambda contribution: contribution.delta))


def _fused(total: Params) -> Fused:
    delta = single(total)
    return Fused(delta, delta, {}, {})
