"""Server Muon: momentum, orthogonalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedcmp.aggregation.linalg import orthogonalised
from fedcmp.aggregation.server.sgd import Velocity


@dataclass(frozen=True)
class Muon(Velocity):
    """``v = beta v + D``, ``x += 0.2 sqrt(max(M, N)) lr O(v)``, with v = 0 before the first round.

    O brings all singular values of an M x N matrix near 1, so that each of its directions moves alike; with the factor
    the step's root mean square is 0.2 lr for a full-rank matrix, close to that of an Adam step. A vector is an n x 1
    matrix: it is normalised. The size of D does not matter, only its directions do.

    Source: Muon, Jordan et al. 2024; the factor: Liu et al. 2025, arXiv 2502.16982.
    Differs from the paper: at the server, on the mean delta of a round in place of a gradient, so the momentum is lower
    (0.5, for tens of rounds, not 0.95 for thousands of steps); no Nesterov term, no weight decay; vectors are
    normalised, where the papers give them to AdamW; float32, where the papers iterate in bfloat16.
    """

    tuned: ClassVar = ("lr", (0.05, 0.1, 0.02))

    lr: float = 0.05
    """Server learning rate, in (0, inf): five times the root mean square of a step."""

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        return 0.2 * self.lr * _scaled_direction(velocity)


def _scaled_direction(value: Tensor) -> Tensor:
    if value.dim() < 2:
        return value.numel() ** 0.5 * value / (value.norm() + 1e-7)
    matrix = value.flatten(start_dim=1)
    return max(matrix.shape) ** 0.5 * orthogonalised(matrix).view_as(value)
