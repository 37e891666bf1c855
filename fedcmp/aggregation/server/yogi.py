"""Server Yogi: FedYogi."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.checks import require_fraction, require_positive
from fedcmp.aggregation.rules import State, Stepped, Update
from fedcmp.aggregation.server import adaptive
from fedcmp.types import Params


@dataclass(frozen=True)
class Yogi:
    """``m = beta1 m + (1 - beta1) D``, ``v -= (1 - beta2) D^2 sign(v - D^2)``, ``x += lr m / (sqrt(v) + tau)``.

    m starts at 0 and v at tau^2. v grows quickly after large steps and falls slowly after small ones.

    Source: FedYogi, Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2.
    Differs from the paper: clients are weighted by samples, as in the paper's experiments, not uniformly as in its
    Algorithm 2; our delta is local minus global, as theirs. No bias correction, as theirs.

    >>> import torch
    >>> adaptive, x = Yogi(lr=1.0, beta1=0.0, tau=1.0), {"bias": torch.zeros(1)}
    >>> adaptive.step(x, Update({"bias": torch.ones(1)}), adaptive.init(x)).params["bias"].isfinite().item()
    True
    """

    needs_basis: ClassVar[bool] = False

    lr: float = 1e-2
    """Server learning rate, in (0, inf)."""
    beta1: float = 0.9
    """Share of the first moment that lives on, in [0, 1)."""
    beta2: float = 0.99
    """Share of the second moment that lives on, in [0, 1)."""
    tau: float = 1e-3
    """Adaptivity: the floor of the denominator, in (0, inf)."""

    def __post_init__(self) -> None:
        require_positive("aggregator.server.lr", self.lr)
        require_fraction("aggregator.server.beta1", self.beta1)
        require_fraction("aggregator.server.beta2", self.beta2)
        require_positive("aggregator.server.tau", self.tau)

    def init(self, params: Params) -> State:
        """Moments before the first round."""
        return adaptive.start(params, self.tau)

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        """One server step."""
        return adaptive.advance(
            params,
            update.delta,
            state,
            lambda v, square: v - (1 - self.beta2) * square * (v - square).sign(),
            lr=self.lr,
            beta1=self.beta1,
            tau=self.tau,
        )
