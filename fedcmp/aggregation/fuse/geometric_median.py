"""The geometric median of the clients' deltas: robust federated aggregation."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial

import torch

from fedcmp.aggregation.checks import require_count, require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, delta_of, shares
from fedcmp.aggregation.linalg import squared_distance, squared_norm
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Metrics, Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeometricMedian(Fuse):
    """``D = argmin_v g(v)``, ``g(v) = sum_k p_k |v - D_k|``, by the modified Weiszfeld iteration from v = 0::

        beta_k = p_k / |v - D_k|, and 0 for those nearer than nu, whose p_k sum to h      (over all parameters together)
        T = sum_k beta_k D_k / sum_k beta_k,   r = |T - v| sum_k beta_k
        v <- T + min(1, h / r) (v - T)                                                   (T where none is that near)

    Clients with less than half of the weight (by the samples that they report, unless weights are uniform) cannot move
    it arbitrarily far, and no client can move the starting point. It stops when v moves by at most ``tolerance`` of its
    norm. Clients with almost zero deltas are near the start and hold it back: against h of the weight v grows at most
    by (1 - h) / h in an iteration. Sums only: one exchange for the plain mean, which is measured, and one for each
    iteration. The objective in the metrics is g at the last point
    but one, with |z| smoothed to ``|z|^2 / (2 nu) + nu / 2`` below nu.

    Source: RFA, Pillutla, Kakade, Harchaoui, IEEE TSP 2022, arXiv 1912.13445; clients at the point itself: Vardi,
    Zhang, PNAS 2000.
    Differs from RFA: clients whose pull RFA bounds by 1 / nu are left out, so that the iteration leaves a point where
    many are in one step. It begins at the global parameters, not at the mean, which a single client can put anywhere;
    it stops by the point, not by g, which distant clients inflate; points and the products beta_k D_k are float32.
    """

    smoothing: float = 1e-6
    """nu, the distance below which a client counts as at the point, in units of a delta's norm, > 0."""
    tolerance: float = 1e-3
    """Largest move of the point, in parts of its own norm, at which the iteration stops, in [0, inf)."""
    max_iterations: int = 100
    """Most iterations in a round, >= 1; each is an exchange."""

    def __post_init__(self) -> None:
        require_number("aggregator.fuse.smoothing", self.smoothing, "(0, inf)")
        require_number("aggregator.fuse.tolerance", self.tolerance, "[0, inf)")
        require_count("aggregator.fuse.max_iterations", self.max_iterations, least=1)

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        share, iterations, done, objective = shares(cohort), 0, False, math.inf
        mean = cohort.sum(delta_of, cohort.weights)
        point = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in params.items()}
        while not done and iterations < self.max_iterations:
            sums = cohort.sum(partial(self._pull, share, point if iterations else {}))
            point, objective, done = cohort.share(cohort.on_server(self._advance, point, sums))
            iterations += 1
        if not done:
            log.warning("the geometric median has not settled in aggregator.fuse.max_iterations=%d", iterations)
        metrics: Metrics = {"aggregator/iterations": iterations, "aggregator/objective": objective}
        return cohort.on_server(lambda: Fused(point, mean, {}, metrics))

    def _pull(self, share: dict[int, float], point: Params, contribution: Contribution) -> Params:
        """The terms of a client; at the start, where there is no ``point`` yet, its distance is its norm."""
        p, delta = share[contribution.client_id], contribution.delta
        distance = math.sqrt(squared_distance(delta, point) if point else contribution.square)
        near = distance < self.smoothing
        beta = 0.0 if near else p / distance
        beta = float(torch.tensor(beta, dtype=torch.float32))  # as in the products: equal clients stay equal
        objective = p * ((distance**2 / self.smoothing + self.smoothing) / 2 if near else distance)
        pulls = {f"pull:{name}": beta * value for name, value in delta.items()}
        # of very different sizes, which one tensor of an exact sum must not have
        facts = {"beta": beta, "near": p * near, "objective": objective}
        return pulls | {name: contribution.numbers(fact) for name, fact in facts.items()}

    def _advance(self, before: Params, sums: Params) -> tuple[Params, float, bool]:
        """The next point, the objective at the last one, and whether they are almost the same."""
        beta, near, objective = (float(sums[name]) for name in ("beta", "near", "objective"))
        goal = {name: sums[f"pull:{name}"].float().div_(beta or 1.0) for name in before}
        pull = beta * math.sqrt(squared_distance(goal, before))
        if pull <= near:
            return before, objective, True
        point = {name: torch.lerp(value, before[name], near / pull) for name, value in goal.items()} if near else goal
        return point, objective, (pull - near) / beta <= self.tolerance * math.sqrt(squared_norm(point))
