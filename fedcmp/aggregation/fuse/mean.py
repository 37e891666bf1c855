"""The weighted mean of the clients' deltas."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.contribution import Cohort, single, weighted_sum
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Mean(Fuse):
    """``D = sum_k p_k D_k``, the fuse of FedAvg.

    The weights p_k are the cohort's: by default the share of samples that client k used in this round.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The mean."""
        return cohort.on_server(_fused, weighted_sum(cohort, lambda contribution: contribution.delta))


def _fused(total: Params) -> Fused:
    delta = single(total)
    return Fused(delta, delta, {}, {})
