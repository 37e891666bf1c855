"""Server extrapolation: FedExP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.aggregation.parts import ServerStep, State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Fedexp(ServerStep):
    """``x += eta D``, ``eta = max(1, sum_k p_k |D_k|^2 / (2 (|D|^2 + eps)))``, norms over all parameters together.

    Where clients agree eta is 1; where K equal clients are orthogonal it is up to K / 2. eta is reported as
    ``aggregator/server_lr``.

    Source: FedExP, Jhunjhunwala et al., ICLR 2023, arXiv 2301.09604.
    Differs from the paper: the last iterate is returned, where the paper evaluates the mean of the last two; clients
    are weighted by p_k, as in its code, not uniformly; eps is constant, where its code lets it shrink by 0.998^2 a
    round and multiplies it by K. Its best eps were 1e-3 (CIFAR, CINIC) and 1e-1 (EMNIST), for deltas of other sizes.
    """

    tuned: ClassVar = ("eps", (1e-3, 1.0, 0.1))

    eps: float = 1e-3
    """What keeps eta from growing without bound where the mean delta vanishes, in (0, inf), a squared norm."""

    def __post_init__(self) -> None:
        require_number("aggregator.server.eps", self.eps, "(0, inf)")

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        eta = max(1.0, update.mean_square / (2 * (squared_norm(update.delta) + self.eps)))
        moved = {name: value + eta * update.delta[name] for name, value in params.items()}
        return Stepped(moved, {}, {"aggregator/server_lr": eta})
