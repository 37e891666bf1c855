"""Where noise comes from, and how much of it a round's sums get."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedcmp.errors import AggregationError
from fedcmp.privacy.release import Release
from fedcmp.seeding import numpy_rng

GRID = -24
"""What is released is rounded to multiples of the power of two in (2^GRID, 2^(GRID + 1)] standard deviations of the
noise that is added to it. At least 2^24 numbers of float64 fall on each multiple, even twelve deviations away."""
TAIL = 12.0
"""Standard deviations. Noise that a client adds is cut there, so that how large its message may be is known beforehand;
the chance that it matters is below 1e-32 for a number."""


class Draw(Protocol):
    """Independent standard normal numbers for each ``path``."""

    def __call__(self, shape: Sequence[int], *path: str | int) -> Tensor:
        """float64 of the given shape, on the CPU."""
        ...


@dataclass(frozen=True)
class Noising:
    """How much noise the sums of a round get.

    Args:
        release: what may be asked, and within which bounds.
        noise: the noise multiplier z of everything that is released in this round together, > 0.
        invited: by how much sums are divided: the clients that were to report, whether they do or not.
        helpers: None: the server adds the noise. Else each client adds its share, and so many are surely honest and
            report: the noise of that many is what is promised.

    Raises:
        AggregationError: without noise there is no privacy.
    """

    release: Release
    noise: float
    invited: int
    helpers: int | None = None

    def __post_init__(self) -> None:
        if not (self.noise > 0 and self.invited > 0):  # no assert: it must hold under python -O, too
            raise AggregationError(f"no privacy with noise={self.noise} for {self.invited} clients")

    @property
    def share(self) -> float:
        """Of the deviation, what whoever adds noise adds: all, or ``1 / sqrt(helpers)``."""
        return 1.0 if self.helpers is None else 1.0 / math.sqrt(self.helpers)

    def deviation(self, name: str) -> float:
        """The standard deviation of the noise in every entry of a tensor's sum.

        Raises:
            AggregationError: the tensor belongs to no part.
        """
        part = self.release.require_part(name)
        return self.release.multiplier(part, self.noise) * self.release.parts[part].bound / self.invited

    def largest(self, name: str) -> float:
        """The largest magnitude that an entry of one client's term may have: known before any client has spoken."""
        bound = self.release.parts[self.release.require_part(name)].bound / self.invited
        own = 0.0 if self.helpers is None else TAIL * self.share * self.deviation(name) + self._grid(name)
        return bound + own

    def add(self, name: str, value: Tensor, draw: Draw, *path: str | int) -> Tensor:
        """``value`` and its noise, on a grid that does not depend on the data; float64.

        Noise in floating point can take only some values, and a sum shifts them: its lowest bits may tell what it was
        (Mironov, ACM CCS 2012). They are rounded away.
        """
        deviation, grid = self.share * self.deviation(name), self._grid(name)
        noise = draw(value.shape, *path).to(value.device)
        if self.helpers is not None:
            noise = noise.clamp(-TAIL, TAIL)
        return ((value + deviation * noise) / grid).round() * grid

    def _grid(self, name: str) -> float:
        return math.ldexp(1.0, math.frexp(self.share * self.deviation(name))[1] + GRID)


def make_draw(stream: str, seed: int) -> Draw:
    """The source that ``privacy.stream`` names: ``seeded`` or ``system``."""
    return system_normal if stream == "system" else partial(seeded_normal, seed)


def seeded_normal(seed: int, shape: Sequence[int], *path: str | int) -> Tensor:
    """The numbers of one stream of the run: the same path gives the same numbers. Who knows the seed knows them.

    From NumPy: torch's generator on a CPU has 2^32 seeds, few enough for two of many streams to be the same one.

    >>> bool((seeded_normal(0, [2], "w", 1) == seeded_normal(0, [2], "w", 1)).all())
    True
    """
    return torch.from_numpy(np.asarray(numpy_rng(seed, "privacy", *path).standard_normal(tuple(shape))))


def system_normal(shape: Sequence[int], *path: str | int) -> Tensor:
    """Fresh numbers from the operating system's cryptographic generator, by Box and Muller's transform.

    The path does not matter: no number is ever drawn twice.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    bits = np.frombuffer(os.urandom(16 * half), dtype="<u8").reshape(2, half) >> 11
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0])), 2.0 * math.pi * uniform[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(normal).reshape(tuple(shape))
