"""Clients that are a few numbers, for references that are loops over single numbers."""

from __future__ import annotations

import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.cohort import LocalCohort

SHAPES = {"linear.weight": (3, 4), "linear.bias": (3,), "norm.weight": (5,)}
PARAMS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SIZE = 20


def clients(num: int, seed: int = 0, scale: float = 1.0) -> list[Contribution]:
    """Client 3 k with k + 1 samples."""
    rng = torch.Generator().manual_seed(seed)
    deltas = [{name: scale * torch.randn(shape, generator=rng) for name, shape in SHAPES.items()} for _ in range(num)]
    return [Contribution(3 * k, delta, num_samples=1 + k) for k, delta in enumerate(deltas)]


def points(*rows: list[float]) -> tuple[LocalCohort, dict[str, torch.Tensor]]:
    """Clients of one vector each, and the parameters."""
    found = [Contribution(k, {"w": torch.tensor(row)}) for k, row in enumerate(rows)]
    return LocalCohort(found), {"w": torch.zeros(len(rows[0]))}


def flat(delta: dict[str, torch.Tensor]) -> list[float]:
    return [float(x) for name in SHAPES for x in delta[name].flatten()]
