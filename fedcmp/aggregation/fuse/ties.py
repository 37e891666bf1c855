"""TIES: trim, elect signs, and average those who agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, single
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Ties(Fuse):
    """Small changes are noise and opposite signs cancel, so drop the first and let the majority decide the second::

        T_k   = D_k where |D_k| is among its largest ``density``, else 0    (over all parameters of the client together)
        sigma = sign(sum_k p_k T_k)
        D     = sum_k p_k a_k T_k / sum_k p_k a_k,   a_k = 1 where sign(T_k) = sigma, else 0

    per coordinate; D is 0 where no client kept an entry or where the kept ones cancel. Entries of equal size are kept
    or dropped together. With density = 1 and all signs alike this is the mean. Two exchanges, sums only.

    Source: TIES-Merging, Yadav et al., NeurIPS 2023, arXiv 2306.01708, Algorithm 1.
    Differs from the paper: its means are plain, ours are weighted by p_k; its scaling of the merged vector is the
    server learning rate. An exact tie of signs gives 0, as in its Algorithm 1 (its code takes the sign of the majority
    of all coordinates).
    """

    density: float = 0.2
    """Share of a client's entries that are kept, in (0, 1]."""

    def __post_init__(self) -> None:
        require_number("aggregator.fuse.density", self.density, "(0, 1]")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        first = cohort.sum(self._ballot, cohort.weights)
        # a sign is a byte: a quarter of what sharing numbers would send
        signs = cohort.share(
            cohort.on_server(lambda: {name: x.sign().to(torch.int8) for name, x in _part("kept", first).items()})
        )
        second = cohort.sum(partial(self._agreeing, signs), cohort.weights)

        def finished() -> Fused:
            values, weights = _part("value", second), _part("weight", second)
            delta = single(
                {name: value / weights[name].where(weights[name] > 0, 1.0) for name, value in values.items()}
            )
            nonzero = sum(int(value.count_nonzero()) for value in delta.values())
            density = nonzero / max(1, sum(value.numel() for value in delta.values()))
            return Fused(delta, _part("mean", first), {}, {"aggregator/density": density})

        return cohort.on_server(finished)

    def _ballot(self, contribution: Contribution) -> Params:
        kept = trimmed(contribution.delta, self.density)
        return _named("mean", contribution.delta) | _named("kept", kept)

    def _agreeing(self, signs: Params, contribution: Contribution) -> Params:
        kept = trimmed(contribution.delta, self.density)
        agrees = {name: value * signs[name] > 0 for name, value in kept.items()}
        values = {name: value.where(agrees[name], 0.0) for name, value in kept.items()}
        return _named("value", values) | _named("weight", agrees)


def trimmed(values: Params, density: float) -> Params:
    """All entries but the largest ``density`` of them set to 0, over all tensors together; at least one is kept."""
    sizes = torch.cat([value.abs().flatten() for value in values.values()])
    # 0.07 * 100 is 7.000000000000001: what rounding adds is no entry
    count = max(1, math.ceil(density * sizes.numel() - 1e-6))
    least = sizes.topk(count, sorted=False).values.min()  # kthvalue has no deterministic form on a GPU
    return {name: value.where(value.abs() >= least, 0.0) for name, value in values.items()}


def _named(prefix: str, values: Params) -> Params:
    return {f"{prefix}:{name}": value for name, value in values.items()}


def _part(prefix: str, values: Params) -> Params:
    return {name.removeprefix(f"{prefix}:"): value for name, value in values.items() if name.startswith(f"{prefix}:")}
