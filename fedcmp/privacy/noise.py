"""What bounds a client's term, how much noise the sum of a round gets, and where the noise comes from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedcmp.errors import AggregationError
from fedcmp.seeding import numpy_rng
from fedcmp.types import Params

BELOW = "below"
"""The tensor of a sum that counts the clients whose norm is at most the clip."""
COUNT_WEIGHT = 0.05
"""Of the budget of a round in which clients are counted, beside 1 for the deltas."""
SLACK = 1e-6
"""Terms are clipped to a norm that is smaller than their bound by this share: room for what rounding adds."""
GRID = -24
"""What is released is rounded to multiples of the power of two in (2^GRID, 2^(GRID + 1)] standard deviations of the
noise that is added to it. At least 2^24 numbers of float64 fall on each multiple, even twelve deviations away."""
TAIL = 12.0
"""Standard deviations. Noise that a client adds is cut there, so that the largest possible message is known beforehand;
the chance that it matters is below 1e-32 for a number."""

Draw = Callable[..., Tensor]
"""``draw(shape, *path)``: independent standard normal numbers for each path, float64, on the CPU."""


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism of one round: clipped deltas, a count beside them if asked for, and their noise.

    A part with the share s of the round's budget gets noise of multiplier ``z / sqrt(s)``; the shares sum to 1, so that
    all parts together are one Gaussian mechanism of multiplier z (Dong, Roth and Su, JRSS B 2022, arXiv 1905.02383,
    corollary 3.3: mu-GDP composes as ``sqrt(mu_1^2 + ...)``, and a Gaussian mechanism has mu = 1 / z).

    Args:
        clip: C, the largest norm of a client's delta.
        noise: z, standard deviation over sensitivity of everything that the round releases, > 0.
        invited: n, by which sums are divided: the clients that were asked to report, whether they do or not.
        round: counted from 0; names the noise.
        draw: where noise comes from.
        helpers: h. None: the server adds the noise. Else each client adds its share, ``1 / sqrt(h)`` of the deviation,
            and so many clients are surely honest and report.
        counts: whether the clients within the clip are counted, too.

    Raises:
        AggregationError: there would be no noise.
    """

    clip: float
    noise: float
    invited: int
    round: int
    draw: Draw
    helpers: int | None = None
    counts: bool = False

    def __post_init__(self) -> None:
        if not (self.noise > 0 and self.invited > 0):  # no assert: it must be checked under python -O, too
            raise AggregationError(f"no privacy with noise={self.noise} for {self.invited} clients")

    def bound(self, name: str) -> float:
        """The largest norm of one client's part, before it is divided by n: C, and 1/2 for the count."""
        return 0.5 if name == BELOW else self.clip

    def deviation(self, name: str) -> float:
        """The standard deviation of the noise in every entry of a sum: ``z / sqrt(s) * bound / n``."""
        share = (COUNT_WEIGHT if name == BELOW else 1.0) / (1.0 + COUNT_WEIGHT) if self.counts else 1.0
        return self.noise / math.sqrt(share) * self.bound(name) / self.invited

    def own_deviation(self, name: str) -> float:
        """The standard deviation of what one party adds: the server all, each client ``1 / sqrt(h)`` of it."""
        return 1.0 / math.sqrt(self.helpers or 1) * self.deviation(name)

    def largest(self, name: str) -> float:
        """The largest magnitude that an entry of one client's term may have: known before any client has reported."""
        own = 0.0 if self.helpers is None else TAIL * self.own_deviation(name) + self._grid(name)
        return self.bound(name) / self.invited + own

    def clip_term(self, term: Params) -> Params:
        """One client's term, float64, with all its tensors but the count scaled to a norm of at most C / n together."""
        parts = [{n: v.double() for n, v in term.items() if (n == BELOW) == count} for count in (False, True)]
        bounds = [1.0 / self.invited * self.bound(name) * (1 - SLACK) for name in ("", BELOW)]
        return {**clip_norm(parts[0], bounds[0]), **clip_norm(parts[1], bounds[1])}

    def add_noise(self, sums: Params, *party: str | int) -> Params:
        """``sums`` with the noise of the server or of one client, on a grid that does not depend on the data; float64.

        Noise in floating point can take only some values, and a sum shifts them: its lowest bits may show what it was
        (Mironov, ACM CCS 2012). They are rounded away.
        """
        found = {}
        for name, value in sums.items():
            noise, grid = self.draw(value.shape, self.round, name, *party).to(value.device), self._grid(name)
            if self.helpers is not None:
                noise = noise.clamp(-TAIL, TAIL)
            found[name] = ((value + self.own_deviation(name) * noise) / grid).round() * grid
        return found

    def _grid(self, name: str) -> float:
        return math.ldexp(1.0, math.frexp(self.own_deviation(name))[1] + GRID)


def make_draw(stream: str, seed: int) -> Draw:
    """The source of noise that ``privacy.stream`` names.

    ``seeded``: the numbers of one stream of the run; the same path gives the same numbers, and who knows the seed knows
    them. From NumPy: torch's generator on a CPU has 2^32 seeds, few enough for two of many streams to be the same one.
    ``system``: fresh numbers from the operating system's cryptographic generator, whatever the path.

    >>> draw = make_draw("seeded", 0)
    >>> bool((draw([2], "w", 1) == draw([2], "w", 1)).all())
    True
    """

    def seeded(shape: Sequence[int], *path: str | int) -> Tensor:
        return torch.from_numpy(np.asarray(numpy_rng(seed, "privacy", *path).standard_normal(tuple(shape))))

    def system(shape: Sequence[int], *path: str | int) -> Tensor:
        bits = np.frombuffer(os.urandom(8 * math.prod(shape)), dtype="<u8") >> 12
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-52  # in (0, 1)
        return torch.special.ndtri(torch.from_numpy(uniform)).reshape(tuple(shape))

    return system if stream == "system" else seeded


def clip_norm(params: Params, bound: float) -> Params:
    """``params``, scaled down to the norm ``bound`` over all of them; zeros if a value is not finite.

    >>> clip_norm({"w": torch.tensor([3.0, 4.0])}, 1.0)
    {'w': tensor([0.6000, 0.8000])}
    """
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in params.values()))
    if norm <= bound:
        return params
    if not math.isfinite(norm):  # 0 times inf is not 0
        return {name: torch.zeros_like(value) for name, value in params.items()}
    return {name: value * (bound / norm) for name, value in params.items()}


def next_clip(clip: float, below: float, quantile: float, rate: float) -> float:
    """``C <- C exp(-rate (b - quantile))``: the bound of the next round.

    Args:
        clip: C, > 0.
        below: b, the noisy share of clients whose norm is at most C, in [0, 1].
        quantile: the share wanted, in (0, 1).
        rate: > 0.

    Source: Andrew et al., NeurIPS 2021, arXiv 1905.03871, section 3.
    Differs from the paper: the noisy share is cut to [0, 1], so that noise alone cannot move the bound further than
    clients could; the noise multiplier of a round is that of deltas and count together, and their shares are fixed.

    >>> next_clip(2.0, 0.5, 0.5, 0.2)
    2.0
    >>> next_clip(2.0, 1.0, 0.5, 0.2) < 2.0 < next_clip(2.0, 0.0, 0.5, 0.2)
    True
    """
    return clip * math.exp(-rate * (below - quantile))
