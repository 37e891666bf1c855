"""Trust by agreement: clients that most others contradict get no weight. Wraps any fuse that weighs clients."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, square_of
from fedcmp.aggregation.diagnostics import cohort_products, cosines_of, effective_clients
from fedcmp.aggregation.fuse.wrappers import Wrapper
from fedcmp.aggregation.parts import Fused, State
from fedcmp.types import Metrics, Params

log = logging.getLogger(__name__)

BOUND = 2.0
"""How many times the median a client's norm and the size of its evidence may be before they are cut."""


class Verdict(NamedTuple):
    """The guard's factors of each client, float64 ``[K]``."""

    trust: Tensor
    """t_k in [0, 1], by which its weight is multiplied."""
    update: Tensor
    """By what its delta is scaled, in (0, 1]."""
    evidence: Tensor
    """By what its evidence is scaled, in (0, 1]."""
    agreed: bool
    """Whether the clients agreed, so that their trust is remembered."""


@dataclass(frozen=True)
class Guarded(Wrapper):
    """``inner`` with weights p_k t_k, and deltas and evidence of bounded size. With cosines c of every two deltas::

        a_k = upper median over j != k of c_kj           what most others say of client k
        t_k = min(1, max(0, 2 a_k / median_j a_j))       full trust from half of the usual agreement on, none at 0
        D_k <- D_k min(1, 2 median_j |D_j| / |D_k|)^2    and G_k alike, by the mean of its diagonals

    While fewer than half of a round's clients are Byzantine, each median lies among the honest values. The median over
    others is the upper one: in an odd cohort an honest client faces as many Byzantine as honest others, and the mean of
    the two middle cosines would be pulled down. (If attackers copy one honest client, they and it get full trust.)

    Where the usual agreement is not above 0, as at the end of a run, when updates are mostly noise, each client keeps
    the trust of the last round with agreement; it has full trust if it was in none, or if none of the cohort would be
    trusted. Such rounds, and rounds of fewer than three clients, which are passed on unchanged, do not change that
    memory. Clients count alike in the medians, and by p_k afterwards.

    It needs the products of deltas, so the server sees pieces of single updates and no method under it is sums-only.

    Source: ours, for the trust t_k of Fed-CMP; cosines to find attackers and clipping at the median norm are FLAME's
    (Nguyen et al., USENIX Security 2022, arXiv 2101.02281), weights that fall again Hampel's (JASA 1974).
    Differs from the papers: medians in the place of FLAME's clustering, no noise.
    """

    @property
    def sums_only(self) -> bool:
        return False

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        # the remembered trust by client; on other ranks than the server the state is empty
        known: dict[int, float] = state.get("trust", {})
        inner = type(state)({key: value for key, value in state.items() if key != "trust"})
        if len(cohort.clients) < 3:
            return cohort.on_server(_remember, self.inner.fuse(cohort, params, inner), known)
        products = cohort_products(cohort, params, cohort.clients)
        sizes = cohort.gather(_evidence_size) if "evidence" in self.needs else {}
        before = [known.get(client) for client in cohort.clients]
        found = cohort.on_server(judge, products, sizes.get("size"), before)
        trust, update, evidence, agreed = cohort.share(cohort.on_server(tuple, found))  # no class crosses ranks
        verdict = Verdict(trust.cpu(), update.cpu(), evidence.cpu(), agreed)
        weights = cohort.weights * verdict.trust
        trusted = MappedCohort(cohort, partial(_bounded, cohort.clients, verdict), weights / weights.sum())
        fused = self.inner.fuse(trusted, params, inner)
        square = trusted.sum(square_of, trusted.weights)  # after it: sites send it along with their last terms

        def finished() -> Fused:
            told = trust.tolist()
            metrics: Metrics = {
                **fused.metrics,
                "aggregator/trust": [round(value, 4) for value in told],
                "aggregator/trusted": effective_clients(trusted.weights),
            }
            mean_square = float(square["square"]) if fused.mean_square is None else fused.mean_square
            now = {**known, **dict(zip(cohort.clients, told, strict=True))} if agreed else known
            return _remember(fused._replace(metrics=metrics, mean_square=mean_square), now)

        return cohort.on_server(finished)


def judge(products: Tensor, sizes: Tensor | None = None, before: list[float | None] | None = None) -> Verdict:
    """The verdict on K clients.

    Args:
        products: inner products of their deltas, ``[K, K]`` float64.
        sizes: the mean diagonal of each one's evidence, ``[K]``; None: they sent none.
        before: the trust of each in the last round with agreement, in [0, 1], or None; None: no client was in one.

    >>> deltas = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [1.0, 0.2], [-9.0, 0.0]], dtype=torch.float64)
    >>> verdict = judge(deltas @ deltas.T)
    >>> verdict.trust.tolist(), [round(value, 2) for value in verdict.update.tolist()]
    ([1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.05])
    """
    num_clients = len(products)
    others = ~torch.eye(num_clients, dtype=torch.bool)
    cosines = cosines_of(products)[others].reshape(num_clients, num_clients - 1)
    agreement = cosines.quantile(0.5, dim=1, interpolation="higher")
    usual = float(agreement.quantile(0.5))
    trust = full = torch.ones_like(agreement)
    if usual > 0.0:
        trust = (2 * agreement / usual).clamp(0.0, 1.0)
    else:
        kept = torch.tensor([1.0 if one is None else one for one in before or []]).to(full)
        trust = kept if kept.any() else full
        log.warning("aggregator.guard: clients do not agree (median cosine %.3g); they keep their earlier trust", usual)
    evidence = _within(sizes) if sizes is not None else full
    return Verdict(trust, _within(products.diagonal().sqrt()), evidence, usual > 0.0)


def _within(sizes: Tensor) -> Tensor:
    values = sizes.double()
    most = BOUND * values.quantile(0.5)
    return torch.where(values > most, (most / values).square(), 1.0)


def _evidence_size(contribution: Contribution) -> Params:
    assert contribution.evidence is not None
    means = [moments.double().diagonal().mean() for moments in contribution.evidence.values()]
    return {"size": torch.stack(means).mean()}


def _bounded(clients: tuple[int, ...], verdict: Verdict, contribution: Contribution) -> Contribution:
    place = clients.index(contribution.client_id)
    return contribution.scaled(float(verdict.update[place]), float(verdict.evidence[place]))


def _remember(fused: Fused, known: dict[int, float]) -> Fused:
    return fused._replace(state={**fused.state, "trust": known})
