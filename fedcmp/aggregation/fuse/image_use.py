"""Weights by image use: clients whose captions do not depend on their pictures count less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, square_of
from fedcmp.aggregation.fuse.wrappers import Wrapper
from fedcmp.aggregation.parts import Fused, State
from fedcmp.types import Metrics, Params

FULL = 0.5
"""A client counts fully from this share of the usual image use on."""
LEAST = 0.05
"""The usual image use below which all clients count alike: there is too little to compare."""
LEAST_COUNTED = 0.01
"""The sum of all ``p_k r_k`` below which all clients count alike."""


@dataclass(frozen=True)
class ImageUse(Wrapper):
    """``inner`` with weights ``q_k = p_k r_k / sum_j p_j r_j``: a client counts as far as its pictures matter.

    With L_k the loss on a batch of client k that has not been trained on yet, and L'_k the loss on the same captions,
    each with another picture of the batch::

        s_k = max(0, 1 - L_k / L'_k)                      the share of the loss that the pictures explain
        s   = sum_k p_k s_k                               of the last round
        r_k = min(1, 2 s_k / s)                           1 while s < 0.05

    Where captions do not belong to their pictures, s_k is 0 up to the noise of a batch. Clients without two rows to
    exchange have r_k = 1. If ``sum_k p_k r_k < 0.01``, all clients count alike.

    No client counts more than by p_k before weights are brought to sum 1. A Byzantine client may say s_k = 1: then it
    has r_k = 1, and raises s by its weight, so that honest clients lose at most the factor ``2 s_k / (s_k + p)``.

    The server sees sums only: one exchange of three numbers before those of ``inner``.

    Source: ours, for the reliability of Fed-CMP.
    """

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | {"image_use"}

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        before, own = state.get("image_use", 0.0), {key: value for key, value in state.items() if key != "image_use"}
        usual = cohort.share(cohort.on_server(float, before))
        found = cohort.sum(partial(_told, usual), cohort.weights)
        counted = cohort.share(cohort.on_server(lambda: _counted(float(found["told"][2]))))
        weighed = WeighedCohort(cohort, partial(_weighed, usual, counted))
        fused = self.inner.fuse(weighed, params, own)
        square = weighed.sum(square_of, weighed.weights)

        def finished() -> Fused:
            explained, heard, _ = found["told"].tolist()
            now = explained / heard if heard else before
            metrics: Metrics = {
                "aggregator/image_use": now,
                "aggregator/counted": counted or 1.0,
            }
            mean_square = float(square["square"]) if fused.mean_square is None else fused.mean_square
            return fused._replace(
                state={**fused.state, "image_use": now}, metrics={**fused.metrics, **metrics}, mean_square=mean_square
            )

        return cohort.on_server(finished)


class WeighedCohort(MappedCohort):
    """A cohort in whose weighted sums each term counts ``contribution.factor`` times; ``weights`` are the inner ones.

    Only a client knows its factor, so the server still sees sums only.
    """

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        if weights is None:
            return super().sum(fn)

        def term(contribution: Contribution) -> Params:
            seen = self.change(contribution)
            found = fn(seen)
            return found if seen.factor == 1.0 else {name: value * seen.factor for name, value in found.items()}

        return self.inner.sum(term, weights)


def _counts(usual: float, contribution: Contribution) -> float:
    """r_k."""
    explained = contribution.explained
    if explained is None or not math.isfinite(explained) or usual < LEAST:
        return 1.0
    return min(1.0, max(0.0, explained) / (FULL * usual))


def _told(usual: float, contribution: Contribution) -> Params:
    explained = contribution.explained
    heard = explained is not None and math.isfinite(explained)
    share = min(1.0, max(0.0, explained)) if heard and explained is not None else 0.0
    return {"told": contribution.numbers(share, float(heard), 1.0 - _counts(usual, contribution))}


def _counted(missing: float) -> float:
    """``sum_k p_k r_k``, exactly 1 where all r_k are, so that sums have their bits; 0: too little to go by."""
    return 1.0 - missing if missing < 1.0 - LEAST_COUNTED else 0.0


def _weighed(usual: float, counted: float, contribution: Contribution) -> Contribution:
    factor = _counts(usual, contribution) / counted if counted else 1.0
    return replace(contribution, factor=contribution.factor * factor)
