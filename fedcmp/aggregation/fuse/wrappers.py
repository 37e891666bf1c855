"""Wrappers of any fuse: clipped deltas, and deltas per local step (FedNova)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, shares
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Wrapper(Fuse):
    """A fuse that changes what ``inner`` is given, and has its properties unless it defines its own."""

    inner: Fuse
    """The fuse that sees the changed cohort."""

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    @property
    def sums_only(self) -> bool:
        return self.inner.sums_only

    @property
    def least_clients(self) -> int:
        return self.inner.least_clients

    @property
    def finds_basis(self) -> bool:
        return self.inner.finds_basis

    def init(self, params: Params) -> State:
        return self.inner.init(params)


@dataclass(frozen=True)
class Clipped(Wrapper):
    """``D_k <- D_k min(1, c / |D_k|)`` before ``inner`` fuses, the norm over all parameters together.

    The halfway delta is scaled by the same factor; evidence is not changed. The mean of ``inner`` and the mean square
    that a server step reads are those of the clipped deltas.

    Source: Sun et al. 2019, arXiv 1911.07963 (norm bounding); McMahan et al., ICLR 2018, arXiv 1710.06963.
    Differs from the paper: no noise is added.
    """

    norm: float
    """c, in (0, inf), in units of a delta's norm."""

    def __post_init__(self) -> None:
        require_number("aggregator.clip_norm", self.norm, "(0, inf)")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        facts = cohort.sum(partial(self._facts, shares(cohort)))
        fused = self.inner.fuse(MappedCohort(cohort, self.clip), params, state)

        def finished() -> Fused:
            clipped, square = facts["facts"].tolist()
            metrics = {**fused.metrics, "aggregator/clipped": clipped / len(cohort.clients)}
            # an inner wrapper may change deltas further
            return fused._replace(
                metrics=metrics, mean_square=square if fused.mean_square is None else fused.mean_square
            )

        return cohort.on_server(finished)

    def clip(self, contribution: Contribution) -> Contribution:
        """The contribution, its delta and its halfway delta scaled so that the delta's norm is at most c."""
        norm = contribution.square**0.5
        return contribution if norm <= self.norm else contribution.scaled(self.norm / norm)

    def _facts(self, share: dict[int, float], contribution: Contribution) -> Params:
        square = contribution.square
        kept = share[contribution.client_id] * min(square, self.norm**2)
        return {"facts": contribution.numbers(float(square > self.norm**2), kept)}


@dataclass(frozen=True)
class Normalised(Wrapper):
    """``D = tau_eff fuse(D_k / a_k)``, ``tau_eff = sum_k p_k a_k``: with the mean, FedNova.

    ``a_k`` counts the gradients that are in client k's delta, each as often as it was applied: for SGD without momentum
    the number n_k of its steps. With momentum rho a gradient acts on in later steps, and::

        a_k = sum_{j = 1..n_k} (1 - rho^j) / (1 - rho) = (n_k - rho (1 - rho^n_k) / (1 - rho)) / (1 - rho)

    So a client that took more steps than others does not pull the fixed point of the rounds towards its own optimum.
    Where all clients take the same steps, nothing changes. Halfway deltas are divided alike; the mean square that a
    server step reads is that of ``tau_eff D_k / a_k``.

    Source: Wang et al., NeurIPS 2020, arXiv 2007.07481.
    Differs from the paper: for AdamW, which the paper does not treat, a_k is the number of steps, as an AdamW step has
    about the same length whatever the gradient. The paper's a_k for a proximal term is not used: with
    ``aggregator.local.kind=proximal`` the steps are counted alone. A rate that changes is left out of a_k, because the
    steps of every client in a round span the same part of the schedule; so is momentum carried over from earlier
    rounds (``federation.keep_local_state``).
    """

    momentum: float = 0.0
    """rho, the momentum of the clients' SGD, in [0, 1)."""

    def __post_init__(self) -> None:
        require_number("optimizer.momentum", self.momentum, "[0, 1)")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        fused = self.inner.fuse(MappedCohort(cohort, self.per_step), params, state)
        facts = cohort.sum(self._facts, cohort.weights)

        def finished() -> Fused:
            steps, square = facts["facts"].tolist()
            return fused._replace(
                delta={name: steps * value for name, value in fused.delta.items()},
                mean={name: steps * value for name, value in fused.mean.items()},
                metrics={**fused.metrics, "aggregator/effective_steps": steps},
                mean_square=steps**2 * (square if fused.mean_square is None else fused.mean_square),
            )

        return cohort.on_server(finished)

    def counted(self, num_steps: int) -> float:
        """``a_k`` of a client with ``num_steps`` local steps, at least 0."""
        rho = self.momentum
        return (num_steps - rho * (1 - rho**num_steps) / (1 - rho)) / (1 - rho)

    def per_step(self, contribution: Contribution) -> Contribution:
        """The contribution, its delta and its halfway delta divided by ``a_k``; without a step the delta is zero."""
        count, halfway = self.counted(contribution.num_steps) or 1.0, contribution.halfway
        return replace(
            contribution,
            delta={name: value / count for name, value in contribution.delta.items()},
            halfway=None if halfway is None else {name: value / count for name, value in halfway.items()},
        )

    def _facts(self, contribution: Contribution) -> Params:
        square = self.per_step(contribution).square
        return {"facts": contribution.numbers(self.counted(contribution.num_steps), square)}
