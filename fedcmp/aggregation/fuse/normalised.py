"""Any fuse, over updates that are brought to one local step first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, weighted_sum
from fedcmp.aggregation.fuse.wrapper import Wrapper
from fedcmp.aggregation.parts import Fused, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Normalised(Wrapper):
    """``D = tau_eff fuse(D_k / a_k)``, ``tau_eff = sum_k p_k a_k``: with the mean, FedNova.

    ``a_k`` counts the gradients that are in client k's delta, each as often as it was applied: for SGD without momentum
    the number n_k of its steps. With momentum rho a gradient acts on in later steps, and::

        a_k = sum_{j = 1..n_k} (1 - rho^j) / (1 - rho) = (n_k - rho (1 - rho^n_k) / (1 - rho)) / (1 - rho)

    So a client that took more steps than others does not pull the fixed point of the rounds towards its own optimum.
    Where all clients take the same steps, nothing changes. Halfway deltas are divided alike; the mean square that a
    server step reads is that of ``tau_eff D_k / a_k``.

    >>> from fedcmp.aggregation import Mean
    >>> Normalised(Mean()).counted(4), Normalised(Mean(), momentum=0.5).counted(2)
    (4.0, 2.5)

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
        """The inner fuse of the normalised deltas, and its plain mean, times ``tau_eff``."""
        fused = self.inner.fuse(MappedCohort(cohort, self.per_step), params, state)
        facts = weighted_sum(cohort, self._facts)
        return cohort.on_server(_finish, fused, facts)

    def counted(self, num_steps: int) -> float:
        """``a_k`` of a client with ``num_steps`` local steps, at least 0."""
        rho = self.momentum
        return (num_steps - rho * (1 - rho**num_steps) / (1 - rho)) / (1 - rho)

    def per_step(self, contribution: Contribution) -> Contribution:
        """The contribution, its delta and its halfway delta divided by ``a_k``."""
        if contribution.num_steps == 0:
            return contribution  # it took no step: its delta is zero
        count, halfway = self.counted(contribution.num_steps), contribution.halfway
        return replace(
            contribution,
            delta={name: value / count for name, value in contribution.delta.items()},
            halfway=None if halfway is None else {name: value / count for name, value in halfway.items()},
        )

    def _facts(self, contribution: Contribution) -> Params:
        square = self.per_step(contribution).square
        device = next(iter(contribution.delta.values())).device
        numbers = [self.counted(contribution.num_steps), square]
        return {"facts": torch.tensor(numbers, dtype=torch.float64, device=device)}


def _finish(fused: Fused, facts: Params) -> Fused:
    steps, square = facts["facts"].tolist()
    return fused._replace(
        delta={name: steps * value for name, value in fused.delta.items()},
        mean={name: steps * value for name, value in fused.mean.items()},
        metrics={**fused.metrics, "aggregator/effective_steps": steps},
        mean_square=steps**2 * (square if fused.mean_square is None else fused.mean_square),
    )
