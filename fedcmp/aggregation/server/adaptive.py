"""Adaptive server steps: FedAdam, FedYogi and FedAdagrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import zeros_like
from fedcmp.aggregation.parts import ServerStep, State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Adaptive(ServerStep):
    """``m = beta1 m + (1 - beta1) D``, ``v = second(v, D^2)``, ``x += lr m / (sqrt(v) + tau)``.

    m starts at 0 and v at tau^2.

    Source: Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2.
    Differs from the paper: clients are weighted by samples, as in the paper's experiments, not uniformly as in its
    Algorithm 2. As there, the delta is local minus global and no bias is corrected.
    """

    tuned: ClassVar = ("lr", (0.01, 0.03, 0.1))

    lr: float = 1e-2
    """Server learning rate, in (0, inf)."""
    beta1: float = 0.9
    """Share of the first moment that is kept, in [0, 1)."""
    tau: float = 1e-3
    """Adaptivity: the floor of the denominator, in (0, inf)."""

    def __post_init__(self) -> None:
        require_number("aggregator.server.lr", self.lr, "(0, inf)")
        require_number("aggregator.server.beta1", self.beta1, "[0, 1)")
        require_number("aggregator.server.tau", self.tau, "(0, inf)")

    def init(self, params: Params) -> State:
        second = {name: torch.full_like(value, self.tau**2) for name, value in params.items()}
        return {"first": zeros_like(params), "second": second}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        m = {name: self.beta1 * value + (1 - self.beta1) * update.delta[name] for name, value in state["first"].items()}
        v = {name: self.second(value, update.delta[name].square()) for name, value in state["second"].items()}
        moved = {name: value + self.lr * m[name] / (v[name].sqrt() + self.tau) for name, value in params.items()}
        return Stepped(moved, {"first": m, "second": v}, {})

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment of a tensor after a round with ``D^2 = square``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adagrad(Adaptive):
    """FedAdagrad: ``v += D^2``. v never falls, so steps only shrink. Source, and what differs: as ``Adaptive``."""

    beta1: float = 0.0
    """Share of the first moment that is kept, in [0, 1)."""

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True)
class Decaying(Adaptive):
    """An adaptive step whose second moment decays."""

    beta2: float = 0.99
    """Share of the second moment that is kept, in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("aggregator.server.beta2", self.beta2, "[0, 1)")


@dataclass(frozen=True)
class Adam(Decaying):
    """FedAdam: ``v = beta2 v + (1 - beta2) D^2``. Large steps are forgotten. Source, differences: ``Adaptive``."""

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class Yogi(Decaying):
    """FedYogi: ``v -= (1 - beta2) D^2 sign(v - D^2)``. v grows quickly after large steps and falls slowly after small
    ones. Source, and what differs: as ``Adaptive``."""

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * (v - square).sign()
