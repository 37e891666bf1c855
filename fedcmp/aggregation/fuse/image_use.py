"""Weights by image use: clients whose captions the pictures do not explain count less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, square_of
from fedcmp.aggregation.fuse.wrappers import Wrapper
from fedcmp.aggregation.parts import Fused, State
from fedcmp.types import Metrics, Params

FULL = 0.5
"""A client counts fully from this share of the usual image use on."""
TOLERANCE = 0.1
"""How far above the usual loss, as a share of it, a client's loss no longer says that its captions are easy."""
LEAST = 0.05
"""The usual image use below which all clients count alike: there is too little to compare."""
SMALLEST = 0.01
"""The least r_k: if pictures explain nothing at any client, all count alike."""
TOLD = "/image_use"


MOST_LOSS = 20.0
"""In nats per token: what a client's loss counts at most in the usual one."""


class Usual(NamedTuple):
    """Weighted means over the clients of a round."""

    explained: float = 0.0
    """s."""
    loss: float = 0.0
    """L, in nats per token."""


@dataclass(frozen=True)
class ImageUse(Wrapper):
    """``inner`` with weights ``q_k = p_k r_k / sum_j p_j r_j``: captions that no picture explains count less.

    With L_k the loss on a batch of client k that has not been trained on yet, and L'_k the loss on the same captions,
    each with another picture of the batch::

        s_k = max(0, 1 - L_k / L'_k)                      the share of the loss that the pictures explain
        s, L = sum_k p_k s_k, sum_k p_k L_k               of the last round
        r_k = max(2 s_k / s, 11 - 10 L_k / L)             clipped to [0.01, 1]; 1 while s < 0.05

    Where captions do not belong to their pictures, s_k is 0 up to the noise of a batch, and the loss is high. Captions
    that are easy without pictures have a low loss, and count. Clients without two rows to exchange have r_k = 1. If
    pictures explain nothing anywhere, all clients count alike. A single client's delta is returned unchanged.

    No client counts more than by p_k before weights are brought to sum 1. A Byzantine client may say s_k = 1: then it
    has r_k = 1, and raises s by its weight, so that honest clients lose at most the factor ``2 s_k / (s_k + p)``.

    The server sees sums only; four numbers more in the first of them.

    Source: ours, for the reliability of Fed-CMP.
    """

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | {"image_use"}

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        before, own = (
            state.get("image_use", list(Usual())),
            type(state)({k: value for k, value in state.items() if k != "image_use"}),
        )
        usual = Usual(*cohort.share(cohort.on_server(list, before)))
        weighed = WeighedCohort(cohort, usual if len(cohort.clients) > 1 else Usual())
        fused = self.inner.fuse(weighed, params, own)
        square = weighed.sum(square_of, weighed.weights)

        def finished() -> Fused:
            now = weighed.told or Usual(*before)
            metrics: Metrics = {"aggregator/image_use": now.explained, "aggregator/counted": weighed.counted}
            mean_square = float(square["square"]) if fused.mean_square is None else fused.mean_square
            kept = {**fused.state, "image_use": list(now)}
            return fused._replace(state=kept, metrics={**fused.metrics, **metrics}, mean_square=mean_square)

        return cohort.on_server(finished)


class WeighedCohort(MappedCohort):
    """A cohort in whose weighted sums each term counts ``r_k / sum_j p_j r_j`` times; only the client knows its r_k.

    Args:
        inner: the cohort.
        usual: of the last round.
    """

    def __init__(self, inner: Cohort, usual: Usual) -> None:
        super().__init__(inner, lambda one: replace(one, factor=one.factor * _factor(one.picture_losses, usual)))
        self.told: Usual | None = None
        """At the server after the first weighted sum: of this round; None: no client could measure it."""
        self._asked = False

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        if weights is None:
            return super().sum(fn)
        asks, self._asked = not self._asked, True
        total = self.inner.sum(partial(self._term, fn, asks), weights)
        if TOLD in total:
            explained, loss, heard, missing = total.pop(TOLD).tolist()
            self.told = Usual(explained / heard, loss / heard) if heard else None
            self.counted = 1.0 - missing
        if self.counted != 1.0:
            total = {name: value.div_(self.counted) for name, value in total.items()}
        return total

    def _term(self, fn: Callable[[Contribution], Params], asks: bool, contribution: Contribution) -> Params:
        seen = self.change(contribution)
        found = fn(seen)
        # counts and signs, too, become numbers: all clients must send one type, whatever their factors
        found = {name: value if value.is_floating_point() else value.float() for name, value in found.items()}
        if seen.factor != 1.0:
            found = {name: value * seen.factor for name, value in found.items()}
        if not asks:
            return found
        explained, loss, heard = _explained(seen.picture_losses), 0.0, 0.0
        if seen.picture_losses is not None and not math.isnan(explained):
            loss, heard = min(MOST_LOSS, seen.picture_losses[0]), 1.0
        # what is missing to 1, so that the bits of sums do not change where all factors are 1
        return {**found, TOLD: seen.numbers(explained if heard else 0.0, loss, heard, 1.0 - seen.factor)}


def _explained(pictures: tuple[float, float] | None) -> float:
    """s_k in [0, 1]; nan: it could not be measured."""
    if pictures is None or not all(map(math.isfinite, pictures)) or min(pictures) < 0:
        return math.nan
    loss, exchanged = pictures
    return max(0.0, 1.0 - loss / exchanged) if exchanged else 0.0


def _factor(pictures: tuple[float, float] | None, usual: Usual) -> float:
    """r_k."""
    explained = _explained(pictures)
    if pictures is None or math.isnan(explained) or usual.explained < LEAST:
        return 1.0
    easy = (1.0 + TOLERANCE - pictures[0] / usual.loss) / TOLERANCE if usual.loss else 1.0
    return min(1.0, max(SMALLEST, explained / (FULL * usual.explained), easy))
