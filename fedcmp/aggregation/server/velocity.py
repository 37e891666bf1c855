"""What server steps with a velocity share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import zeros_like
from fedcmp.aggregation.parts import ServerStep, State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Velocity(ServerStep):
    """``v = beta v + D``, ``x += move(D, v)`` for each tensor, with v = 0 before the first round."""

    lr: float = 1.0
    """Server learning rate, in (0, inf)."""
    beta: float = 0.5
    """Share of the velocity that is kept for the next round, in [0, 1)."""

    def __post_init__(self) -> None:
        require_number("aggregator.server.lr", self.lr, "(0, inf)")
        require_number("aggregator.server.beta", self.beta, "[0, 1)")

    def init(self, params: Params) -> State:
        """A velocity of zeros."""
        return {"velocity": zeros_like(params)}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        """One server step."""
        velocity = {name: self.beta * value + update.delta[name] for name, value in state["velocity"].items()}
        moved = {name: value + self.move(update.delta[name], velocity[name]) for name, value in params.items()}
        return Stepped(moved, {"velocity": velocity}, {})

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        """What is added to a tensor, of the shape of ``delta``."""
        raise NotImplementedError
