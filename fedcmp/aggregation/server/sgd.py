"""Server SGD, plain and with a velocity: FedAvg, FedAvgM and the outer optimizer of DiLoCo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import scaled, zeros_like
from fedcmp.aggregation.parts import ServerStep, State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Sgd(ServerStep):
    """``x += lr D``. With lr = 1 and the mean as fuse this is FedAvg.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629; the server rate: Reddi et al., ICLR 2021, arXiv 2003.00295.
    """

    lr: float = 1.0
    """Server learning rate, in (0, inf)."""

    def __post_init__(self) -> None:
        require_number("aggregator.server.lr", self.lr, "(0, inf)")

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        delta = scaled(update.delta, self.lr)
        return Stepped({name: value + delta[name] for name, value in params.items()}, {}, {})


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
        return {"velocity": zeros_like(params)}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        velocity = {name: self.beta * value + update.delta[name] for name, value in state["velocity"].items()}
        moved = {name: value + self.move(update.delta[name], velocity[name]) for name, value in params.items()}
        return Stepped(moved, {"velocity": velocity}, {})

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        """What is added to a tensor, of the shape of ``delta``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Momentum(Velocity):
    """The heavy ball: ``v = beta v + D``, ``x += lr v``, with v = 0 before the first round.

    A constant delta is amplified up to 1 / (1 - beta) times.

    Source: FedAvgM, Hsu, Qi, Brown 2019, arXiv 1909.06335.
    Differs from the paper: the momentum that they tune is mostly 0.9 or more, for many rounds of few clients; for the
    tens of rounds of a single pass the default is 0.5. Our delta is local minus global, so signs are turned.
    """

    tuned: ClassVar = ("beta", (0.5, 0.8, 0.9))

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        return self.lr * velocity


@dataclass(frozen=True)
class Nesterov(Velocity):
    """``v = beta v + D``, ``x += lr (D + beta v)``, with v = 0 before the first round.

    This is ``torch.optim.SGD(nesterov=True)`` with the pseudo-gradient -D. Every delta counts 1 / (1 - beta) times in
    the long run and 1 + beta times at once.

    Source: DiLoCo, Douillard et al. 2023, arXiv 2311.08105, with their lr 0.7 and momentum 0.9.
    Differs from the paper: they average clients uniformly; here the weights are the cohort's.
    """

    tuned: ClassVar = ("lr", (0.7, 0.3, 1.0))

    lr: float = 0.7
    """Server learning rate, in (0, inf)."""
    beta: float = 0.9
    """Share of the velocity that is kept for the next round, in [0, 1)."""

    def move(self, delta: Tensor, velocity: Tensor) -> Tensor:
        return self.lr * (delta + self.beta * velocity)
