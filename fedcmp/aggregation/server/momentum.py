"""Server momentum, the heavy ball: FedAvgM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcmp.aggregation.checks import require_fraction, require_positive
from fedcmp.aggregation.rules import State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Momentum:
    """``v = beta v + D``, ``x += lr v``, with v = 0 before the first round.

    A constant delta is amplified up to 1 / (1 - beta) times.

    Source: FedAvgM, Hsu, Qi, Brown 2019, arXiv 1909.06335.
    Differs from the paper: the momentum that they tune is mostly 0.9 or more, for many rounds of few clients; for the
    tens of rounds of a single pass the default is 0.5. Our delta is local minus global, so signs are turned.

    >>> momentum, x = Momentum(beta=0.5), {"bias": torch.zeros(1)}
    >>> once = momentum.step(x, Update({"bias": torch.ones(1)}), momentum.init(x))
    >>> momentum.step(once.params, Update({"bias": torch.ones(1)}), once.state).params
    {'bias': tensor([2.5000])}
    """

    needs_basis: ClassVar[bool] = False

    lr: float = 1.0
    """Server learning rate, in (0, inf)."""
    beta: float = 0.5
    """Share of the velocity that lives on to the next round, in [0, 1)."""

    def __post_init__(self) -> None:
        require_positive("aggregator.server.lr", self.lr)
        require_fraction("aggregator.server.beta", self.beta)

    def init(self, params: Params) -> State:
        """A velocity of zeros."""
        return {"velocity": {name: torch.zeros_like(value) for name, value in params.items()}}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        """One server step."""
        velocity = {name: self.beta * value + update.delta[name] for name, value in state["velocity"].items()}
        moved = {name: value + self.lr * velocity[name] for name, value in params.items()}
        return Stepped(moved, {"velocity": velocity}, {})
