"""Server Adagrad: FedAdagrad."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcmp.aggregation.server.adaptive import Adaptive


@dataclass(frozen=True)
class Adagrad(Adaptive):
    """``m = beta1 m + (1 - beta1) D``, ``v += D^2``, ``x += lr m / (sqrt(v) + tau)``.

    m starts at 0 and v at tau^2. v never falls, so steps only shrink.

    Source: FedAdagrad, Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2.
    Differs from the paper: as ``Adaptive``.

    >>> import torch
    >>> from fedcmp.aggregation.parts import Update
    >>> step, x = Adagrad(lr=1.0, tau=1.0), {"bias": torch.zeros(1)}
    >>> step.step(x, Update({"bias": torch.ones(1)}), step.init(x)).params["bias"].isfinite().item()
    True
    """

    beta1: float = 0.0
    """Share of the first moment that is kept, in [0, 1)."""

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """``v + D^2``."""
        return v + square
