"""Deltas of bounded norm: a wrapper of any fuse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, shares
from fedcmp.aggregation.fuse.wrapper import Wrapper
from fedcmp.aggregation.parts import Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Clipped(Wrapper):
    """``D_k <- D_k min(1, c / |D_k|)`` before ``inner`` fuses, the norm over all parameters together.

    The halfway delta is scaled by the same factor; evidence is not changed. The mean of ``inner`` and the mean square
    that a server step reads are those of the clipped deltas.

    Source: Sun et al. 2019, arXiv 1911.07963 (norm bounding); McMahan et al., ICLR 2018, arXiv 1710.06963.
    Differs from the paper: no noise is added.

    >>> from fedcmp.aggregation import Mean
    >>> from fedcmp.distributed.cohort import LocalCohort
    >>> client = Contribution(0, {"bias": torch.tensor([3.0, 4.0])})
    >>> Clipped(Mean(), norm=1.0).fuse(LocalCohort([client]), {}, {}).delta
    {'bias': tensor([0.6000, 0.8000])}
    """

    norm: float
    """c, in (0, inf), in units of a delta's norm."""

    def __post_init__(self) -> None:
        require_number("aggregator.clip_norm", self.norm, "(0, inf)")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The inner fuse of the clipped deltas, with the share of clients that were clipped."""
        facts = cohort.sum(partial(self._facts, shares(cohort)))
        fused = self.inner.fuse(MappedCohort(cohort, self.clip), params, state)
        return cohort.on_server(self._finish, fused, facts, len(cohort.clients))

    def clip(self, contribution: Contribution) -> Contribution:
        """The contribution, its delta and its halfway delta scaled so that the delta's norm is at most c."""
        norm = contribution.square**0.5
        return contribution if norm <= self.norm else contribution.scaled(self.norm / norm)

    def _facts(self, share: dict[int, float], contribution: Contribution) -> Params:
        square = contribution.square
        kept = share[contribution.client_id] * min(square, self.norm**2)
        device = next(iter(contribution.delta.values())).device
        return {"facts": torch.tensor([float(square > self.norm**2), kept], dtype=torch.float64, device=device)}

    def _finish(self, fused: Fused, facts: Params, num_clients: int) -> Fused:
        clipped, mean_square = facts["facts"].tolist()
        metrics = {**fused.metrics, "aggregator/clipped": clipped / num_clients}
        known = fused.mean_square  # an inner wrapper that changes deltas further
        return fused._replace(metrics=metrics, mean_square=mean_square if known is None else known)
