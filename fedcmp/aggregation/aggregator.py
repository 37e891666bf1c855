"""A method: a local step, a fuse and a server step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedcmp.aggregation import diagnostics
from fedcmp.aggregation.contribution import Cohort, square_of
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.aggregation.parts import Aggregated, Fuse, Fused, LocalStep, Plain, ServerStep, State, Update
from fedcmp.errors import AggregationError, ConfigError, check_choice
from fedcmp.types import Metrics, Params

NEEDS = ("evidence", "halfway", "image_use", "outcome", "refit", "gradient", "start_gradient")
"""What a method may ask clients to record."""


class Kept(State):
    """A fuse's state, which says what it lacks."""

    def __missing__(self, key: str) -> Any:
        raise AggregationError(
            f"the fuse's state has no {key!r}: the last round's fuse, or before the first round init, returned "
            f"{', '.join(self) or 'an empty one'} (ranks but the server have no state: it is read in on_server)"
        )


@dataclass(frozen=True)
class Aggregator:
    """A method: a local step, a fuse and a server step.

    ``params_t+1, state_t+1 = server(params_t, fuse(cohort_t), state_t)``; no input is changed.

    Args:
        fuse: many clients to one delta.
        server: one delta to new parameters.
        local: what clients do differently in their steps.
        weighting: what the weights p_k of a cohort count: ``samples``, ``tokens`` or ``uniform``.
        pairwise: cosines between the deltas of up to this many clients are measured each round; 0: none, so that the
            server of a sums-only method sees nothing but sums.
        measures: whether the mean square of the deltas is summed for ``energy_kept`` and for server steps that read it;
            off, the server gets only what the fuse and the local step ask for.
    """

    fuse: Fuse
    server: ServerStep
    local: LocalStep = field(default_factory=Plain)
    weighting: str = "samples"
    pairwise: int = 64
    measures: bool = True

    def __post_init__(self) -> None:
        for part in (self.fuse, self.server, self.local):
            if isinstance(part, type):
                raise ConfigError(f"aggregator: {part.__name__} is a class; expected an instance, {part.__name__}(...)")
        for name in self.needs:
            check_choice(f"{type(self.fuse).__name__}.needs", name, NEEDS)

    @property
    def needs(self) -> frozenset[str]:
        """What clients must record: a subset of ``NEEDS``."""
        return self.fuse.needs | self.local.needs

    @property
    def sums_only(self) -> bool:
        """Whether the fuse makes the server see sums over clients only; for diagnostics see ``pairwise``."""
        return self.fuse.sums_only

    def init(self, params: Params) -> State:
        """The state before the first round: a part each for ``local``, ``fuse``, ``server`` and ``diagnostics``."""
        return {
            "local": self.local.init(params),
            "fuse": self.fuse.init(params),
            "server": self.server.init(params),
            "diagnostics": {},
        }

    @torch.no_grad()
    def aggregate(self, cohort: Cohort, params: Params, state: State) -> Aggregated:
        """One round.

        Args:
            cohort: the clients of this round.
            params: the global parameters that they started from.
            state: from ``init`` or from the last round.

        Raises:
            AggregationError: the cohort is too small for the method, or the fuse returned no delta of the projector.
        """
        if len(cohort.clients) < self.fuse.least_clients:
            needed = f"{type(self.fuse).__name__} needs at least {self.fuse.least_clients} clients in a round"
            raise AggregationError(f"{needed}, got {len(cohort.clients)}")
        fused = self.fuse.fuse(cohort, params, Kept(state["fuse"]))
        square = cohort.sum(square_of, cohort.weights) if self.measures else {}
        local = self.local.update(cohort, state["local"])
        before = cohort.traffic.up
        cosines = diagnostics.cohort_cosines(cohort, params, self.pairwise)
        measured = cohort.traffic.up - before
        done = cohort.on_server(self._finish, cohort, fused, square, cosines, params, state)
        shared = cohort.share(None if done is None else (done.params, done.metrics))
        sent = {"up": cohort.traffic.up - measured, "down": cohort.traffic.down, "diagnostics": measured}
        sizes = {f"bytes/{name}": len(cohort.clients) * size for name, size in sent.items()}
        kept = done.state if done else {"fuse": {}, "server": {}, "diagnostics": {}}
        return Aggregated(shared[0], {**kept, "local": local}, {**shared[1], **sizes})

    def _finish(
        self, cohort: Cohort, fused: Fused, square: Params, cosines: Metrics, params: Params, state: State
    ) -> Aggregated:
        self._check_fused(fused, params)
        mean_square = float(square["square"]) if self.measures else 0.0
        mean_square = mean_square if fused.mean_square is None else fused.mean_square
        moved = squared_norm(fused.delta)
        averaged = moved if fused.mean is fused.delta else squared_norm(fused.mean)
        kept = {"aggregator/energy_kept": diagnostics.energy_kept(averaged, mean_square)} if self.measures else {}
        stepped = self.server.step(params, Update(fused.delta, fused.basis, mean_square), state["server"])
        _check_returned(self.fuse, fused.state, fused.metrics)
        _check_returned(self.server, stepped.state, stepped.metrics)
        step_norm, oscillation = diagnostics.compare_steps(state["diagnostics"].get("before"), params, stepped.params)
        metrics: Metrics = {
            "aggregator/delta_norm": moved**0.5,
            "aggregator/step_norm": step_norm,
            **kept,
            "aggregator/K_eff": diagnostics.effective_clients(cohort.weights),
            "aggregator/oscillation": oscillation,
            **cosines,
            **fused.metrics,
            **stepped.metrics,
        }
        parts = {"fuse": dict(fused.state), "server": stepped.state, "diagnostics": {"before": params}}
        return Aggregated(stepped.params, parts, metrics)

    def _check_fused(self, fused: Fused, params: Params) -> None:
        method = f"the method ({type(self.fuse).__name__})"
        if not isinstance(fused, Fused):
            raise AggregationError(f"{method} returned {type(fused).__name__}; expected Fused")
        wanted = _shapes(params)
        for what in ("delta", "mean"):
            if (found := _shapes(getattr(fused, what))) != wanted:
                raise AggregationError(f"{method} returned the {what} {found}; expected one of the projector: {wanted}")
        if other := next((value.dtype for value in fused.delta.values() if value.dtype != torch.float32), None):
            raise AggregationError(f"{method} returned a delta of {other}; expected torch.float32, as of `single`")


def _shapes(delta: Any) -> Any:
    """Name -> shape; the name of the type of what is no tensor, or of a delta that is no dict."""
    if not isinstance(delta, dict):
        return type(delta).__name__
    return {name: tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for name, one in delta.items()}


def _check_returned(part: Fuse | ServerStep, state: State, metrics: Metrics) -> None:
    """Whether a record can take the metrics that a part returned, and a checkpoint give its state back."""
    returned = f"the method ({type(part).__name__}) returned"
    for name, value in metrics.items():
        if not name.startswith("aggregator/"):
            raise AggregationError(f"{returned} the metric {name}; expected a name like aggregator/{name}")
        if not isinstance(value, int | float | list):
            kind = type(value).__name__
            raise AggregationError(f"{returned} the metric {name} as {kind}; expected a number: float(...)")
    for name, value in state.items():
        if kind := _not_kept(value):
            raise AggregationError(f"{returned} {name} of its state as {kind.__name__}; expected tensors and numbers")


def _not_kept(value: Any) -> type | None:
    """The type of what a checkpoint would not give back, at any depth; None: there is no such thing."""
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return next((found for one in parts if (found := _not_kept(one))), None)
    return None if value is None or type(value) in (Tensor, int, float, bool, str) else type(value)
