"""What a rule releases in a round: the parts of its sums, what bounds them, and how the budget is shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fedcmp.aggregation.base import Contribution
from fedcmp.errors import AggregationError
from fedcmp.types import Params

SLACK = 1e-6
"""Parts are clipped to a norm that is smaller than their bound by this share: room for what rounding adds."""


class Part(NamedTuple):
    """Tensors of a sum that are clipped together and get noise of one size."""

    bound: float
    """Largest L2 norm of one client's tensors together, before they are divided by the number of clients."""
    share: float
    """Of the round's budget; those of a release sum to 1."""


def unchanged(contribution: Contribution) -> Contribution:
    """The contribution."""
    return contribution


def as_answered(total: Params, deviation: Callable[[str], float], weight: float) -> Params:
    """The noisy sums."""
    return total


@dataclass(frozen=True)
class Release:
    """All that a rule asks its clients for in a round.

    A rule may ask for each part once. With noise multiplier z of a round and share s, a part's sum gets noise of
    ``z / sqrt(s)`` times its sensitivity, and all of them together are one Gaussian mechanism of multiplier z.

    >>> release = Release({"delta": Part(2.0, 0.25), "other": Part(1.0, 0.75)}, lambda name: "delta")
    >>> release.multiplier("delta", 3.0)
    6.0
    >>> round(joint_multiplier([release.multiplier(part, 3.0) for part in release.parts]), 12)
    3.0
    """

    parts: Mapping[str, Part]
    part_of: Callable[[str], str | None]
    """The part to which a tensor of a sum belongs, by its name; None: it must not be released."""
    prepare: Callable[[Contribution], Contribution] = field(default=unchanged)
    """What each client does to its contribution before anything is computed from it. It decides how much the clipping
    of the parts changes, and nothing about privacy."""
    clean: Callable[[Params, Callable[[str], float], float], Params] = field(default=as_answered)
    """What the server makes of noisy sums, the deviation of their noise by name, and the weight of a client, before the
    rule sees them."""

    def require_part(self, name: str) -> str:
        """The part of a tensor.

        Raises:
            AggregationError: it has none.
        """
        part = self.part_of(name)
        if part is None or part not in self.parts:  # no assert: it must hold under python -O, too
            raise AggregationError(f"{name!r} has no bound and must not leave its client")
        return part

    def multiplier(self, part: str, noise: float) -> float:
        """The noise multiplier of one part, where that of the round is ``noise``."""
        return noise / math.sqrt(self.parts[part].share)


def joint_multiplier(multipliers: Collection[float]) -> float:
    """``1 / sqrt(sum_i 1 / z_i^2)``: of several Gaussian mechanisms together, each free to depend on those before it.

    Source: Dong, Roth and Su, JRSS B 2022, arXiv 1905.02383, corollary 3.3 (mu-GDP composes as
    ``sqrt(mu_1^2 + ...)``, and a Gaussian mechanism has mu = 1 / z).

    >>> joint_multiplier([2.0, 2.0, 2.0, 2.0])
    1.0
    """
    return 1.0 / math.sqrt(sum(1.0 / one**2 for one in multipliers))


def clip_parts(term: Params, release: Release, weight: float) -> Params:
    """One client's term, each part of it scaled so that its norm is at most ``weight`` times its bound; float64.

    A part that is not finite becomes 0: it says nothing, and that it was not finite nobody learns.

    Raises:
        AggregationError: a tensor belongs to no part.
    """
    squares: dict[str, float] = {}
    found: dict[str, str] = {}
    for name, value in term.items():
        part = found[name] = release.require_part(name)
        squares[part] = squares.get(part, 0.0) + float(value.double().square().sum())
    factors = {}
    for part, square in squares.items():
        norm, most = math.sqrt(square) if square >= 0 else math.nan, weight * release.parts[part].bound * (1 - SLACK)
        factors[part] = 0.0 if not math.isfinite(norm) else min(1.0, most / norm) if norm else 1.0
    return {name: _scaled(value.double(), factors[found[name]]) for name, value in term.items()}


def _scaled(value: torch.Tensor, factor: float) -> torch.Tensor:
    return value * factor if factor else torch.zeros_like(value)  # 0 times inf is no number


def clip_norm(params: Params, bound: float) -> Params:
    """``params``, scaled down to the norm ``bound`` over all of them; zeros where they are not finite.

    >>> clip_norm({"w": torch.tensor([3.0, 4.0])}, 1.0)
    {'w': tensor([0.6000, 0.8000])}
    """
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in params.values()))
    if norm <= bound:
        return params
    return {name: _scaled(value, bound / norm if math.isfinite(norm) else 0.0) for name, value in params.items()}
