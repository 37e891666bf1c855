"""Orthogonality-Preserved Momentum: the server step of Fed-CMP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import zeros_like
from fedcmp.aggregation.linalg import join_affine, split_affine
from fedcmp.aggregation.parts import ServerStep, State, Stepped, Update
from fedcmp.types import Params


@dataclass(frozen=True)
class Opm(ServerStep):
    """``V_t = D_t + mu V_{t-1} U_t U_t^T``, ``x += lr V_t`` for each affine layer, V = 0 before the first round.

    U_t (N' x r, orthonormal) is this round's shared alignment basis. The velocity is carried over by the orthogonal
    projector on it, so history adds up along directions that are alive and is dropped along the others. Only the
    projector enters: signs and rotations of U's columns cannot matter. Parameters outside affine layers have no basis
    and no memory.

    Source: Fed-CMP, arXiv 2603.26786, of which only the abstract was public: this definition is ours.
    Differs from the paper: unknown, derived from the abstract.
    """

    tuned: ClassVar = ("momentum", (0.0, 0.3, 0.5))

    lr: float = 1.0
    """Server learning rate, in (0, inf)."""
    momentum: float = 0.0
    """mu, in [0, 1)."""
    projected: bool = True
    """Carry the velocity by the projector; off: all of it, as the heavy ball does."""

    def __post_init__(self) -> None:
        require_number("aggregator.server.lr", self.lr, "(0, inf)")
        require_number("aggregator.server.momentum", self.momentum, "[0, 1)")

    @property
    def needs_basis(self) -> bool:
        """Whether history is projected."""
        return self.projected and self.momentum != 0

    def init(self, params: Params) -> State:
        return {"velocity": zeros_like(params)}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        carried: Params = state["velocity"]
        if self.needs_basis:
            carried = zeros_like(carried)
            for name, basis in update.basis.items():
                carried |= split_affine((join_affine(state["velocity"], name) @ basis) @ basis.T, name)
        velocity = {name: value + self.momentum * carried[name] for name, value in update.delta.items()}
        moved = {name: value + self.lr * velocity[name] for name, value in params.items()}
        return Stepped(moved, {"velocity": velocity}, {})
