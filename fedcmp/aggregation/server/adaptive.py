"""What the adaptive server optimizers share: a first moment, a second moment, and the step between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedcmp.aggregation.rules import State, Stepped
from fedcmp.types import Params


def start(params: Params, tau: float) -> State:
    """``m_0 = 0``, ``v_0 = tau^2``."""
    return {
        "first": {name: torch.zeros_like(value) for name, value in params.items()},
        "second": {name: torch.full_like(value, tau**2) for name, value in params.items()},
    }


def advance(
    params: Params,
    delta: Params,
    state: State,
    second: Callable[[Tensor, Tensor], Tensor],
    *,
    lr: float,
    beta1: float,
    tau: float,
) -> Stepped:
    """``m = beta1 m + (1 - beta1) D``, ``v = second(v, D^2)``, ``x += lr m / (sqrt(v) + tau)``; no bias correction.

    Source: Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2.
    """
    m = {name: beta1 * value + (1 - beta1) * delta[name] for name, value in state["first"].items()}
    v = {name: second(value, delta[name].square()) for name, value in state["second"].items()}
    moved = {name: value + lr * m[name] / (v[name].sqrt() + tau) for name, value in params.items()}
    return Stepped(moved, {"first": m, "second": v}, {})
