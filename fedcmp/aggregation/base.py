"""What an aggregator is: ``fuse`` (many clients to one delta), then ``server`` (one delta to new parameters).

Aggregators are frozen values. Their state is passed in and out and nothing is kept between calls, so that what a run
saves is all there is. A delta is local minus global, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from fedcmp.aggregation.diagnostics import energy_kept, squared_norm
from fedcmp.types import Params, Scalars

T = TypeVar("T")

State = dict[str, Any]
"""Nested dicts of tensors and numbers, so that ``torch.load(weights_only=True)`` reads it back."""

ENERGY_KEPT = "aggregator/energy_kept"
"""The metric that a fuse may report where it has the mean anyway; otherwise the aggregator computes it."""


class Contribution(NamedTuple):
    """What one client did in one round. It stays where the client was trained; the cohort decides what leaves."""

    client_id: int
    delta: Params
    """Local minus global, float32, keys and shapes of the projector."""
    halfway: Params | None = None
    """The delta after half of the local steps, if the rule needs ``"halfway"``."""
    evidence: Params | None = None
    """Per affine layer, the mean of x~ x~^T over its inputs, ``[N', N']``, if the rule needs ``"evidence"``."""
    num_samples: int = 1
    """Samples used in this round, at least 0."""
    num_tokens: int = 0
    """Tokens that carried loss, at least 0."""
    num_steps: int = 1
    """Local optimizer steps, at least 0."""
    scalars: Scalars = {}  # noqa: RUF012 - a NamedTuple default; nobody writes into a contribution
    """Loss before and after, gradient norm, seconds and the like."""


class Cohort(Protocol):
    """The clients of one round, as the server may see them. All ranks make the same calls in the same order.

    What ``sum`` and ``gather`` return is valid at the server; elsewhere only its keys, shapes and dtypes are promised.
    A decision that every rank needs goes through ``on_server``.
    """

    @property
    def clients(self) -> tuple[int, ...]:
        """The accepted client ids, sorted."""
        ...

    @property
    def weights(self) -> torch.Tensor:
        """The weights p_k in the order of ``clients``: float32 ``[K]``, at least 0, sum 1, the same on every rank."""
        ...

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        """``sum_k fn(contribution_k)``, float32; each term is computed where its client was trained."""
        ...

    def gather(self, fn: Callable[[Contribution], Params]) -> Params:
        """``fn(contribution_k)`` of all clients, stacked ``[K, ...]`` in the order of ``clients``; costs K copies."""
        ...

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """``fn(*args)``, run at the server; its result, or its exception, reaches every rank."""
        ...


def weighted_sum(cohort: Cohort, fn: Callable[[Contribution], Params]) -> Params:
    """``sum_k p_k fn(contribution_k)``, each product taken in float64."""
    share = dict(zip(cohort.clients, cohort.weights.tolist(), strict=True))

    def term(contribution: Contribution) -> Params:
        weight = share[contribution.client_id]
        return {name: weight * value.double() for name, value in fn(contribution).items()}

    return cohort.sum(term)


class Fused(NamedTuple):
    """What a fuse returns."""

    delta: Params
    """One delta for all clients, float32."""
    state: State
    metrics: Scalars


class Stepped(NamedTuple):
    """What a server step returns."""

    params: Params
    state: State
    metrics: Scalars


class Aggregated(NamedTuple):
    """What one round of aggregation returns."""

    params: Params
    """The new global parameters."""
    state: State
    metrics: Scalars
    """``aggregator/...``: at least ``delta_norm``, ``step_norm`` and ``energy_kept``."""


class Fuse(Protocol):
    """Many deltas to one. A frozen dataclass; ``init`` and ``fuse`` are pure."""

    @property
    def needs(self) -> frozenset[str]:
        """What clients must record: a subset of {"evidence", "halfway"}."""
        ...

    @property
    def sums_only(self) -> bool:
        """Whether the server sees sums over clients only, so that its memory does not depend on K."""
        ...

    def init(self, params: Params) -> State:
        """The state before the first round."""
        ...

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The delta of this round from the deltas of its clients, and the new state."""
        ...


class ServerStep(Protocol):
    """One delta to new parameters. A frozen dataclass; ``init`` and ``step`` are pure and run at the server."""

    def init(self, params: Params) -> State:
        """The state before the first round."""
        ...

    def step(self, params: Params, delta: Params, state: State) -> Stepped:
        """New parameters and state; ``delta`` points where the parameters should go, so it is added, not subtracted."""
        ...


@dataclass(frozen=True)
class Aggregator:
    """A fuse followed by a server step.

    ``params_t+1, state_t+1 = server(params_t, fuse(cohort_t), state_t)``; no input is changed.

    Args:
        fuse: many clients to one delta.
        server: one delta to new parameters.

    >>> from fedcmp.aggregation import Mean, Sgd
    >>> aggregator = Aggregator(Mean(), Sgd(lr=0.5))
    >>> aggregator.needs, aggregator.sums_only
    (frozenset(), True)
    """

    fuse: Fuse
    server: ServerStep

    @property
    def needs(self) -> frozenset[str]:
        """What clients must record: a subset of {"evidence", "halfway"}."""
        return self.fuse.needs

    @property
    def sums_only(self) -> bool:
        """Whether the server sees sums over clients only."""
        return self.fuse.sums_only

    def init(self, params: Params) -> State:
        """The state before the first round: ``{"fuse": ..., "server": ...}``."""
        return {"fuse": self.fuse.init(params), "server": self.server.init(params)}

    @torch.no_grad()
    def aggregate(self, cohort: Cohort, params: Params, state: State) -> Aggregated:
        """One round.

        Args:
            cohort: the clients of this round.
            params: the global parameters that they started from.
            state: from ``init`` or from the last round.
        """
        fused = self.fuse.fuse(cohort, params, state["fuse"])
        if ENERGY_KEPT not in fused.metrics:
            mean = weighted_sum(cohort, lambda contribution: contribution.delta)
            fused.metrics[ENERGY_KEPT] = energy_kept(mean, mean_square(cohort))
        return cohort.on_server(self._finish, fused, params, state["server"])

    def _finish(self, fused: Fused, params: Params, server_state: State) -> Aggregated:
        stepped = self.server.step(params, fused.delta, server_state)
        step = {name: value - params[name] for name, value in stepped.params.items()}
        metrics = {
            "aggregator/delta_norm": squared_norm(fused.delta) ** 0.5,
            "aggregator/step_norm": squared_norm(step) ** 0.5,
            **fused.metrics,
            **stepped.metrics,
        }
        return Aggregated(stepped.params, {"fuse": fused.state, "server": stepped.state}, metrics)


def mean_square(cohort: Cohort) -> float:
    """``sum_k p_k |D_k|^2`` over all parameters; valid at the server."""

    def square(contribution: Contribution) -> Params:
        device = next(iter(contribution.delta.values())).device
        return {"square": torch.tensor(squared_norm(contribution.delta), dtype=torch.float64, device=device)}

    return float(weighted_sum(cohort, square)["square"])
