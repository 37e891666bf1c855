"""The parts of a method: a local step, a fuse (many clients to one delta), a server step (one delta to parameters).

Each part is a frozen dataclass with pure methods. State is passed in and returned; nothing is kept between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from fedcmp.aggregation.contribution import Cohort
from fedcmp.types import Metrics, Params

State = dict[str, Any]
"""Nested dicts of tensors and numbers, so that ``torch.load(weights_only=True)`` reads it back."""


class Update(NamedTuple):
    """What the server step is given: one delta, and what else the round knows."""

    delta: Params
    """One delta for all clients, float32."""
    basis: Params = {}  # noqa: RUF012 - never written
    """Per affine layer, the shared alignment basis, ``[N', r]`` with orthonormal columns; empty where none is found."""
    mean_square: float = 0.0
    """``sum_k p_k |D_k|^2`` over all parameters."""


class Fused(NamedTuple):
    """What a fuse returns, at the server."""

    delta: Params
    mean: Params
    """The plain weighted mean of the deltas, against which interference is measured."""
    state: State
    metrics: Metrics
    basis: Params = {}  # noqa: RUF012
    """As in ``Update``."""
    mean_square: float | None = None
    """``sum_k p_k |D_k|^2`` of the deltas that ``mean`` is the mean of, from fuses that change them; None: as sent."""


class Stepped(NamedTuple):
    """What a server step returns; a whole round, too: then the state is at the server, the rest on every rank."""

    params: Params
    """The new global parameters."""
    state: State
    metrics: Metrics
    """``aggregator/...``, after a round at least ``delta_norm``, ``step_norm``, ``K_eff`` and ``oscillation``, and
    ``energy_kept`` where it is measured; and ``bytes/up``, ``bytes/down`` and ``bytes/diagnostics``, over all clients,
    four to a number."""


Aggregated = Stepped


class Fuse(Protocol):
    """Many deltas to one. ``fuse`` must be written; the rest has a default."""

    weighted: ClassVar[bool] = True
    """Whether clients count by ``cohort.weights``; else they count alike, and trust as weights (``Guarded``) is
    refused."""

    @property
    def needs(self) -> frozenset[str]:
        """What clients must record: a subset of {"evidence", "halfway", "image_use", "outcome", "refit"}."""
        return frozenset()

    @property
    def sums_only(self) -> bool:
        """Whether the server sees sums over clients only, so that its memory does not depend on K."""
        return True

    @property
    def least_clients(self) -> int:
        """The smallest cohort for which the method is defined."""
        return 1

    @property
    def finds_basis(self) -> bool:
        """Whether ``Fused.basis`` has a shared alignment basis of each affine layer."""
        return False

    def without_basis(self) -> Fuse:
        """The same where no server step needs the basis."""
        return self

    def init(self, params: Params) -> State:
        """The state before the first round."""
        return {}

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The delta of this round from the deltas of its clients, and the new state; valid at the server."""


class ServerStep(Protocol):
    """One delta to new parameters, at the server. ``step`` must be written; the rest has a default."""

    tuned: ClassVar[tuple[str, tuple[float, ...]]] = ("lr", (1.0, 2.0, 0.5))
    """The option that a comparison tunes beside the local learning rate, and its values, the default first."""

    @property
    def needs_basis(self) -> bool:
        """Whether the fuse before it must find a shared alignment basis."""
        return False

    def init(self, params: Params) -> State:
        """The state before the first round."""
        return {}

    def step(self, params: Params, update: Update, state: State) -> Stepped:
        """New parameters and state; ``update.delta`` points where the parameters should go: it is added."""


class Finished(NamedTuple):
    """What a local step returns after a client's last step."""

    client: State
    """The client's own state for its next round; empty where the method keeps none."""
    message: Params | None
    """What the client sends beside its delta; None: nothing."""


class LocalStep(Protocol):
    """What clients do differently in their steps; by default nothing.

    ``shared`` is the part of the state that the server keeps and every client reads, ``client`` the part that one
    client keeps from round to round.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What a client must record for ``finish``: a subset of {"gradient", "start_gradient"}."""
        return frozenset()

    def init(self, params: Params) -> State:
        """The shared state before the first round."""
        return {}

    def client_init(self, params: Params) -> State:
        """A client's own state before its first round."""
        return {}

    def correct(self, gradient: Params, local: Params, start: Params, shared: State, client: State) -> Params:
        """The gradient that the optimizer is given, from the data's (already clipped) ``gradient`` at ``local``."""
        return gradient

    def finish(self, recorded: dict[str, Params], shared: State, client: State) -> Finished:
        """After a client's last step; ``recorded`` holds what ``needs`` asked for.

        ``"gradient"`` is the mean of the data's gradients over the local steps, ``"start_gradient"`` the mean gradient
        at the global parameters over the same batches.
        """
        return Finished({}, None)

    def update(self, cohort: Cohort, shared: State) -> State:
        """The shared state after a round, the same on every rank."""
        return {}


@dataclass(frozen=True)
class Plain(LocalStep):
    """The gradient of the data: the local steps of FedAvg.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """
