"""Server Nesterov momentum: the outer optimizer of DiLoCo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedcmp.aggregation.server.velocity import Velocity


@dataclass(frozen=True)
class Nesterov(Velocity):
    """``v = beta v + D``, ``x += lr (D + beta v)``, with v = 0 before the first round.

    This is ``torch.optim.SGD(nesterov=True)`` with the pseudo-gradient -D. Every delta counts 1 / (1 - beta) times in
    the long run and 1 + beta times at once.

    Source: DiLoCo, Douillard et al. 2023, arXiv 2311.08105, with their lr 0.7 and momentum 0.9.
    Differs from the paper: they average clients uniformly; here the weights are the cohort's.

    >>> import torch
    >>> from fedcmp.aggregation.parts import Update
    >>> nesterov, x = Nesterov(lr=1.0, beta=0.5), {"bias": torch.zeros(1)}
    >>> nesterov.step(x, Update({"bias": torch.ones(1)}), nesterov.init(x)).params
    {'bias': tensor([1.5000])}
    """

    tuned: ClassVar = ("lr", (0.7, 0.3, 1.0))

    lr: float = 0.7
    """Server learning rate, in (0, inf)."""
    beta: float = 0.9
    """Share of the velocity that is kept for the next round, in [0, 1)."""

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        """``lr (D + beta v)``."""
        return self.lr * (delta + self.beta * velocity)
