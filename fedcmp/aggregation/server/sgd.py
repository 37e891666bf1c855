"""Server SGD: the delta, scaled."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import scaled
from fedcmp.aggregation.parts import ServerStep, State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Sgd(ServerStep):
    """``x += lr D``. With lr = 1 and the mean as fuse this is FedAvg.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629; the server rate: Reddi et al., ICLR 2021, arXiv 2003.00295.

    >>> import torch
    >>> Sgd(lr=0.5).step({"bias": torch.tensor([1.0])}, Update({"bias": torch.tensor([2.0])}), {}).params
    {'bias': tensor([2.])}
    """

    lr: float = 1.0
    """Server learning rate, in (0, inf)."""

    def __post_init__(self) -> None:
        require_number("aggregator.server.lr", self.lr, "(0, inf)")

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        delta = scaled(update.delta, self.lr)
        return Stepped({name: value + delta[name] for name, value in params.items()}, {}, {})
