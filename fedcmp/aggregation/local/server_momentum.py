"""Local steps that lean towards the direction of the last round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, message_of, single, zeros_like
from fedcmp.aggregation.parts import Finished, LocalStep, State
from fedcmp.types import Params


@dataclass(frozen=True)
class ServerMomentum(LocalStep):
    """``v = alpha g + (1 - alpha) Delta_t``: the local step of FedCM.

    ``Delta_t`` is the direction of the last round, of the size of a gradient: ``Delta_t+1 = sum_k p_k mean(v)``, the
    mean over the local path of client k, which is what the clients send. ``Delta_0 = 0``. At ``alpha = 1`` the steps
    are plain.

    Source: Xu et al. 2021, arXiv 2106.10874.
    Differs from the paper: clients send the mean of v, which for SGD at a constant rate equals the paper's
    ``(x - y) / (lr K)`` and is right under AdamW and a schedule as well; AdamW rescales v, so that only its direction
    and the ratio of its entries count. The mean over clients has the weights p_k (by default by samples), where the
    paper's is uniform. The server's rate is that of the server step, in units of the mean delta (the paper's
    ``eta_g = lr K`` is 1 here). The data's gradient is clipped before it enters v.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    alpha: float = 0.1
    """Share of the data's gradient in each step, in (0, 1]."""

    def __post_init__(self) -> None:
        require_number("aggregator.local.alpha", self.alpha, "(0, 1]")

    def init(self, params: Params) -> State:
        return {"direction": zeros_like(params)}

    def correct(self, gradient: Params, local: Params, start: Params, shared: State, client: State) -> Params:
        return self._leaning(gradient, shared)

    def finish(self, recorded: dict[str, Params], shared: State, client: State) -> Finished:
        """Sends the mean of v on the path, which is v of the mean gradient."""
        return Finished({}, self._leaning(recorded["gradient"], shared))

    def update(self, cohort: Cohort, shared: State) -> State:
        total = cohort.sum(message_of, cohort.weights)
        return cohort.share(cohort.on_server(lambda: {"direction": single(total)}))

    def _leaning(self, gradient: Params, shared: State) -> Params:
        before = shared["direction"]
        return {name: self.alpha * value + (1 - self.alpha) * before[name] for name, value in gradient.items()}
