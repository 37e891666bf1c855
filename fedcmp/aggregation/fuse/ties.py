"""TIES: trim, elect signs, and average those who agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.aggregation.linalg import cache_parts
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
        bounds: dict[int, float] = {}  # found once for both exchanges, where a client's delta is
        first = cohort.sum(partial(self._ballot, bounds), cohort.weights)
        # a sign is a byte: a quarter of what sharing numbers would send
        elected = cohort.share(
            cohort.on_server(lambda: {name: x.sign().to(torch.int8) for name, x in _part("kept", first).items()})
        )
        signs = {name: value.float() for name, value in elected.items()}
        second = cohort.sum(partial(self._agreeing, bounds, signs), cohort.weights)

        def finished() -> Fused:
            weights = {name: value.where(value > 0, 1.0) for name, value in _part("weight", second).items()}
            sizes = _part("size", second)
            delta = {name: (sizes[name] / weights[name]).float().mul_(sign) for name, sign in signs.items()}
            nonzero = sum(int(value.count_nonzero()) for value in delta.values())
            density = nonzero / max(1, sum(value.numel() for value in delta.values()))
            return Fused(delta, _part("mean", first), {}, {"aggregator/density": density})

        return cohort.on_server(finished)

    def _ballot(self, bounds: dict[int, float], contribution: Contribution) -> Params:
        return _named("mean", contribution.delta) | _named("kept", self._trimmed(bounds, contribution))

    def _agreeing(self, bounds: dict[int, float], signs: Params, contribution: Contribution) -> Params:
        kept = self._trimmed(bounds, contribution)
        agreeing = {name: value.mul_(signs[name]).clamp_(min=0.0) for name, value in kept.items()}
        return _named("size", agreeing) | _named("weight", {name: value > 0 for name, value in agreeing.items()})

    def _trimmed(self, bounds: dict[int, float], contribution: Contribution) -> Params:
        """The delta with all entries but its largest set to 0; new tensors."""
        client, delta = contribution.client_id, contribution.delta
        if client not in bounds:
            # 0.07 * 100 is 7.000000000000001: what rounding adds is no entry
            count = math.ceil(self.density * sum(value.numel() for value in delta.values()) - 1e-6)
            bounds[client] = bound_of_largest(delta, max(1, count))
        return {name: hardshrink(value, bounds[client]) for name, value in delta.items()}


def bound_of_largest(values: Params, count: int) -> float:
    """A number below the size ``|x|`` of the ``count`` largest entries of all tensors together, and of no smaller one.

    The bits of a float are ordered as its size: their upper half is counted, and only the entries that share it with
    the last of the largest are looked at again.

    Args:
        values: of one dtype, float32 or float64.
        count: at least 1, at most all entries; zeros are never above the bound.

    >>> bound = bound_of_largest({"w": torch.tensor([2.0, -3.0, 0.5]), "b": torch.tensor([-2.0])}, 2)
    >>> 0.5 < bound < 2.0
    True
    """
    parts = [part for value in values.values() for part in cache_parts(value.flatten())]
    if parts[0].is_meta:  # shapes alone
        return 0.0
    counts = torch.zeros(2**15, dtype=torch.int64, device=parts[0].device)
    for part in parts:
        counts += torch.bincount(_upper_bits(part), minlength=2**15)
    at_least = counts.flip(0).cumsum(0).flip(0)
    upper = int((at_least >= count).sum()) - 1
    rest = count - int(at_least[upper] - counts[upper])
    same = torch.cat([part[_upper_bits(part) == upper] for part in parts]).abs()
    least = same.topk(rest, sorted=False).values.min()  # kthvalue has no deterministic form on a GPU
    return float(least.nextafter(torch.zeros_like(least)))


def _upper_bits(values: Tensor) -> Tensor:
    """The upper 16 bits of the sizes, of which one is the sign's."""
    bits = torch.int32 if values.dtype == torch.float32 else torch.int64
    return values.abs().view(bits) >> (8 * bits.itemsize - 16)


def _named(prefix: str, values: Params) -> Params:
    return {f"{prefix}:{name}": value for name, value in values.items()}


def _part(prefix: str, values: Params) -> Params:
    return {name.removeprefix(f"{prefix}:"): value for name, value in values.items() if name.startswith(f"{prefix}:")}
