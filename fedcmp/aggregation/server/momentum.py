"""Server momentum, the heavy ball: FedAvgM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedcmp.aggregation.server.velocity import Velocity


@dataclass(frozen=True)
class Momentum(Velocity):
    """``v = beta v + D``, ``x += lr v``, with v = 0 before the first round.

    A constant delta is amplified up to 1 / (1 - beta) times.

    Source: FedAvgM, Hsu, Qi, Brown 2019, arXiv 1909.06335.
    Differs from the paper: the momentum that they tune is mostly 0.9 or more, for many rounds of few clients; for the
    tens of rounds of a single pass the default is 0.5. Our delta is local minus global, so signs are turned.

    >>> import torch
    >>> from fedcmp.aggregation.parts import Update
    >>> momentum, x = Momentum(beta=0.5), {"bias": torch.zeros(1)}
    >>> once = momentum.step(x, Update({"bias": torch.ones(1)}), momentum.init(x))
    >>> momentum.step(once.params, Update({"bias": torch.ones(1)}), once.state).params
    {'bias': tensor([2.5000])}
    """

    tuned: ClassVar = ("beta", (0.5, 0.8, 0.9))

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        """``lr v``."""
        return self.lr * velocity
