"""Local steps that are held near the global parameters."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.parts import LocalStep, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Proximal(LocalStep):
    """``h_k(w) = F_k(w) + mu / 2 |w - w_t|^2``: the local objective of FedProx.

    The gradient that the optimizer is given is the data's plus ``mu (w - w_t)``, exactly; at the first step, where
    ``w = w_t``, it is the data's alone.

    Source: Li et al., MLSys 2020, arXiv 1812.06127.
    Differs from the paper: a client takes the steps that it is given instead of stopping at a gamma-inexact minimum;
    all clients of a cohort are weighted by their samples, where the paper draws clients by them. The pull is added
    after the data's gradient is clipped and is not clipped itself; AdamW then rescales their sum, so that its strength
    there depends on the size of the gradients and not on mu alone.
    """

    mu: float = 0.01
    """Strength of the pull, > 0; the paper tries 0.001 to 1."""

    def __post_init__(self) -> None:
        require_number("aggregator.local.mu", self.mu, "(0, inf)")

    def correct(self, gradient: Params, local: Params, start: Params, shared: State, client: State) -> Params:
        return {name: value + self.mu * (local[name] - start[name]) for name, value in gradient.items()}
