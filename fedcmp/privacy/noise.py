"""Where noise comes from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedcmp.seeding import torch_rng


class Draw(Protocol):
    """Independent standard normal numbers for each ``path``."""

    def __call__(self, shape: Sequence[int], *path: str | int) -> Tensor:
        """float64 of the given shape, on the CPU."""
        ...


def make_draw(stream: str, seed: int) -> Draw:
    """The source that ``privacy.stream`` names: ``seeded`` or ``system``."""
    return system_normal if stream == "system" else partial(seeded_normal, seed)


def seeded_normal(seed: int, shape: Sequence[int], *path: str | int) -> Tensor:
    """The numbers of one stream of the run: the same path gives the same numbers. Who knows the seed knows them.

    >>> bool((seeded_normal(0, [2], "w", 1) == seeded_normal(0, [2], "w", 1)).all())
    True
    """
    return torch.randn(tuple(shape), generator=torch_rng(seed, "privacy", *path), dtype=torch.float64)


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
