"""Weights by image use: clients whose captions do not depend on their pictures count less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, square_of
from fedcmp.aggregation.fuse.wrappers import Wrapper
from fedcmp.aggregation.parts import Fused, State
from fedcmp.types import Metrics, Params

FULL = 0.5
"""A client counts fully from this share of the usual image use on."""
LEAST = 0.05
"""The usual image use below which all clients count alike: there is too little to compare."""
SMALLEST = 0.01
"""The least r_k: if pictures explain nothing at any client, all count alike."""
TOLD = "/image_use"


@dataclass(frozen=True)
class ImageUse(Wrapper):
    """``inner`` with weights ``q_k = p_k r_k / sum_j p_j r_j``: a client counts as far as its pictures matter.

    With L_k the loss on a batch of client k that has not been trained on yet, and L'_k the loss on the same captions,
    each with another picture of the batch::

        s_k = max(0, 1 - L_k / L'_k)                      the share of the loss that the pictures explain
        s   = sum_k p_k s_k                               of the last round
        r_k = min(1, max(0.01, 2 s_k / s))                1 while s < 0.05

    Where captions do not belong to their pictures, s_k is 0 up to the noise of a batch. Clients without two rows to
    exchange have r_k = 1. If pictures explain nothing anywhere, all clients count alike.

    No client counts more than by p_k before weights are brought to sum 1. A Byzantine client may say s_k = 1: then it
    has r_k = 1, and raises s by its weight, so that honest clients lose at most the factor ``2 s_k / (s_k + p)``.

    The server sees sums only; three numbers more in the first of them.

    Source: ours, for the reliability of Fed-CMP.
    """

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | {"image_use"}

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        before, own = state.get("image_use", 0.0), {key: value for key, value in state.items() if key != "image_use"}
        weighed = WeighedCohort(cohort, cohort.share(cohort.on_server(float, before)))
        fused = self.inner.fuse(weighed, params, own)
        square = weighed.sum(square_of, weighed.weights)

        def finished() -> Fused:
            explained, heard = weighed.told
            now = explained / heard if heard else before
            metrics: Metrics = {"aggregator/image_use": now, "aggregator/counted": weighed.counted}
            mean_square = float(square["square"]) if fused.mean_square is None else fused.mean_square
            return fused._replace(
                state={**fused.state, "image_use": now}, metrics={**fused.metrics, **metrics}, mean_square=mean_square
            )

        return cohort.on_server(finished)


class WeighedCohort(MappedCohort):
    """A cohort in whose weighted sums each term counts ``r_k / sum_j p_j r_j`` times; only the client knows its r_k.

    Args:
        inner: the cohort.
        usual: the image use of the last round, s.
    """

    def __init__(self, inner: Cohort, usual: float) -> None:
        super().__init__(inner, lambda one: replace(one, factor=one.factor * _factor(one.explained, usual)))
        self.told = (0.0, 0.0)
        """At the server after the first weighted sum: ``sum p_k s_k`` and ``sum p_k`` of those who could measure it."""
        self._asked = False

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        if weights is None:
            return super().sum(fn)
        asks, self._asked = not self._asked, True

        def term(contribution: Contribution) -> Params:
            seen = self.change(contribution)
            found = fn(seen)
            if seen.factor != 1.0:
                found = {name: value * seen.factor for name, value in found.items()}
            # what is missing to 1, so that the bits of sums do not change where all factors are 1
            heard = _is_measured(seen.explained)
            share = min(1.0, max(0.0, seen.explained or 0.0)) if heard else 0.0
            return {**found, TOLD: seen.numbers(share, float(heard), 1.0 - seen.factor)} if asks else found

        total = self.inner.sum(term, weights)
        if TOLD in total:
            share, heard, missing = total.pop(TOLD).tolist()
            self.told, self.counted = (share, heard), 1.0 - missing
        if self.counted != 1.0:
            total = {name: value.div_(self.counted) for name, value in total.items()}
        return total


def _is_measured(explained: float | None) -> bool:
    return explained is not None and math.isfinite(explained)


def _factor(explained: float | None, usual: float) -> float:
    """r_k."""
    if explained is None or not _is_measured(explained) or usual < LEAST:
        return 1.0
    return min(1.0, max(SMALLEST, explained / (FULL * usual)))
