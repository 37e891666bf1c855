"""Server Adam: FedAdam."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcmp.aggregation.server.adaptive import Decaying


@dataclass(frozen=True)
class Adam(Decaying):
    """``m = beta1 m + (1 - beta1) D``, ``v = beta2 v + (1 - beta2) D^2``, ``x += lr m / (sqrt(v) + tau)``.

    m starts at 0 and v at tau^2. Its memory of large steps fades.

    Source: FedAdam, Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2.
    Differs from the paper: as ``Adaptive``.

    >>> import torch
    >>> from fedcmp.aggregation.parts import Update
    >>> step, x = Adam(lr=1.0, beta1=0.0, tau=1.0), {"bias": torch.zeros(1)}
    >>> step.step(x, Update({"bias": torch.ones(1)}), step.init(x)).params["bias"].isfinite().item()
    True
    """

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """``beta2 v + (1 - beta2) D^2``."""
        return self.beta2 * v + (1 - self.beta2) * square
