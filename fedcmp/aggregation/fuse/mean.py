"""The weighted mean of the clients' deltas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.base import ENERGY_KEPT, Cohort, Fused, State, mean_square, weighted_sum
from fedcmp.aggregation.diagnostics import energy_kept
from fedcmp.types import Params


@dataclass(frozen=True)
class Mean:
    """``D = sum_k p_k D_k``, the fuse of FedAvg.

    The weights p_k are the cohort's: by default the share of samples that client k used in this round.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    sums_only: ClassVar[bool] = True

    def init(self, params: Params) -> State:
        """The mean has no memory."""
        return {}

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The mean, and how much energy it kept."""
        delta = weighted_sum(cohort, lambda contribution: contribution.delta)
        return Fused(delta, {}, {ENERGY_KEPT: energy_kept(delta, mean_square(cohort))})
