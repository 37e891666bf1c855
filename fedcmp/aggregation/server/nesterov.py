"""Server Nesterov momentum: the outer optimizer of DiLoCo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcmp.aggregation.checks import require_fraction, require_positive
from fedcmp.aggregation.rules import State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Nesterov:
    """``v = beta v + D``, ``x += lr (D + beta v)``, with v = 0 before the first round.

    This is ``torch.optim.SGD(nesterov=True)`` with the pseudo-gradient -D. Every delta counts 1 / (1 - beta) times in
    the long run and 1 + beta times at once.

    Source: DiLoCo, Douillard et al. 2023, arXiv 2311.08105, with their lr 0.7 and momentum 0.9.
    Differs from the paper: they average clients uniformly; here the weights are the cohort's.

    >>> nesterov, x = Nesterov(lr=1.0, beta=0.5), {"bias": torch.zeros(1)}
    >>> nesterov.step(x, Update({"bias": torch.ones(1)}), nesterov.init(x)).params
    {'bias': tensor([1.5000])}
    """

    needs_basis: ClassVar[bool] = False

    lr: float = 0.7
    """Server learning rate, in (0, inf)."""
    beta: float = 0.9
    """Share of the velocity that lives on to the next round, in [0, 1)."""

    def __post_init__(self) -> None:
        require_positive("aggregator.server.lr", self.lr)
        require_fraction("aggregator.server.beta", self.beta)

    def init(self, params: Params) -> State:
        """A velocity of zeros."""
        return {"velocity": {name: torch.zeros_like(value) for name, value in params.items()}}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        """One server step."""
        delta = update.delta
        velocity = {name: self.beta * value + delta[name] for name, value in state["velocity"].items()}
        moved = {name: value + self.lr * (delta[name] + self.beta * velocity[name]) for name, value in params.items()}
        return Stepped(moved, {"velocity": velocity}, {})
