"""Trust by agreement: clients that most others contradict are not heard; a wrapper of any fuse that weighs clients."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.base import Cohort, Contribution, MappedCohort, scaled, weighted_sum
from fedcmp.aggregation.diagnostics import cohort_products, cosines_of, effective_clients, square_of
from fedcmp.aggregation.fuse.wrapper import Wrapper
from fedcmp.aggregation.rules import Fused, State
from fedcmp.types import Metrics, Params

log = logging.getLogger(__name__)

BOUND = 2.0
"""How many times the median a client's norm and the size of its evidence may be before they are cut."""


class Verdict(NamedTuple):
    """What the guard thinks of each client, float64 ``[K]``."""

    trust: Tensor
    """t_k in [0, 1], by which its weight is multiplied."""
    update: Tensor
    """By what its delta is scaled, in (0, 1]."""
    evidence: Tensor
    """By what its evidence is scaled, in (0, 1]."""
    agreed: bool
    """Whether clients agreed: the trust is theirs, and worth remembering."""


@dataclass(frozen=True)
class Guarded(Wrapper):
    """``inner`` with weights p_k t_k, and deltas and evidence of bounded size. With cosines c of every two deltas::

        a_k = upper median over j != k of c_kj           what most others say of client k
        t_k = min(1, max(0, 2 a_k / median_j a_j))       full trust from half of the usual agreement on, none at 0
        D_k <- D_k min(1, 2 median_j |D_j| / |D_k|)^2    and G_k alike, by the mean of its diagonals

    As long as fewer than half of a round's clients are hostile, each median lies among what honest clients say. In an
    odd cohort as many honest as hostile others may face an honest client: the upper of the two middle cosines is then
    an honest one where liars contradict, and the mean of both would not be. (Where they copy one honest client instead,
    it is theirs, that client and they have full trust, and the other honest ones the less the less they agree.)
    Where even the usual agreement is not above 0, as at the end of a run, when updates are mostly noise, nobody can be
    told from a liar: each has the trust of the last round in which there was agreement, and all of it if it was in
    none, or if that leaves nobody; a warning says which. Such rounds, and those of fewer than three clients, which are
    passed on as they are, leave that memory as it was. Clients count alike in the medians, and by p_k
    afterwards. An update that is too long comes out shorter than twice the median, the shorter the longer it was: to
    shout does not pay.

    It needs the deltas' products, so the server sees pieces of single updates: no rule under it is sums-only. Clients
    cannot be asked to measure their own trust: those for whom it is made would lie.

    Source: ours, for the trust t_k of Fed-CMP; cosines that tell hostile clients and clipping at the median norm are
    FLAME's (Nguyen et al., USENIX Security 2022, arXiv 2101.02281), weights that fall off again Hampel's (JASA 1974).
    Differs from the papers: medians in the place of FLAME's clustering, no noise.
    """

    @property
    def sums_only(self) -> bool:
        """False: the products of deltas are measured."""
        return False

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The inner fuse of the trusted, with what each is trusted."""
        known, inner = _parted(state)
        if len(cohort.clients) < 3:
            return cohort.on_server(_remembering, self.inner.fuse(cohort, params, inner), known)
        products = cohort_products(cohort, params, cohort.clients)
        sizes = cohort.gather(_evidence_size) if "evidence" in self.needs else {}
        found = cohort.on_server(judge, products, sizes.get("size"), _before(known, cohort.clients))
        verdict = _on_cpu(*cohort.share(cohort.on_server(tuple, found)))  # no class crosses ranks
        weights = cohort.weights * verdict.trust
        trusted = Trusted(cohort, partial(_bounded, cohort.clients, verdict), weights / weights.sum())
        square = weighted_sum(trusted, square_of)
        fused = self.inner.fuse(trusted, params, inner)
        return cohort.on_server(_finish, fused, square, verdict, trusted.weights, cohort.clients, known)


@dataclass(frozen=True)
class Trusted(MappedCohort):
    """A cohort whose clients have other weights, and whose contributions are changed."""

    trusted: Tensor
    """The weights: float64 ``[K]``, at least 0, sum 1."""

    @property
    def weights(self) -> Tensor:
        """The trusted ones."""
        return self.trusted


def judge(products: Tensor, sizes: Tensor | None = None, before: Tensor | None = None) -> Verdict:
    """The verdict on K clients.

    Args:
        products: inner products of their deltas, ``[K, K]`` float64.
        sizes: the mean diagonal of each one's evidence, ``[K]``; None: they sent none.
        before: what each was trusted when last there was agreement, ``[K]`` in [0, 1]; None: none of them was there.

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
    agreed = usual > 0.0
    if agreed:
        trust = (2 * agreement / usual).clamp(0.0, 1.0)
    else:
        trust, said = _recalled(before, torch.ones_like(agreement))
        log.warning("aggregator.guard: clients do not agree (median cosine %.3g); %s", usual, said)
    norms = products.diagonal().sqrt()
    evidence = _within(sizes) if sizes is not None else torch.ones_like(trust)
    return Verdict(trust, _within(norms), evidence, agreed)


def _recalled(before: Tensor | None, everybody: Tensor) -> tuple[Tensor, str]:
    """What clients are trusted where they do not agree, and why."""
    if before is None:
        return everybody, "none of them was in a round that did, so all of them are trusted"
    if not before.any():
        return everybody, "when last they did, none of them was trusted, so all of them are trusted"
    return before.to(everybody), "each keeps the trust that it had"


def _within(sizes: Tensor) -> Tensor:
    values = sizes.double()
    most = BOUND * values.quantile(0.5)
    return torch.where(values > most, (most / values).square(), 1.0)


def _evidence_size(contribution: Contribution) -> Params:
    assert contribution.evidence is not None, "the client was asked for evidence"
    means = [moments.double().diagonal().mean() for moments in contribution.evidence.values()]
    return {"size": torch.stack(means).mean()}


def _bounded(clients: tuple[int, ...], verdict: Verdict, contribution: Contribution) -> Contribution:
    place = clients.index(contribution.client_id)
    update, evidence = float(verdict.update[place]), float(verdict.evidence[place])
    return replace(
        contribution,
        delta=scaled(contribution.delta, update),
        halfway=None if contribution.halfway is None else scaled(contribution.halfway, update),
        evidence=None if contribution.evidence is None else scaled(contribution.evidence, evidence),
    )


def _before(known: dict[int, float], clients: tuple[int, ...]) -> Tensor | None:
    """What is remembered of these clients, where anything is: the others are trusted."""
    if known.keys().isdisjoint(clients):
        return None
    return torch.tensor([known.get(client, 1.0) for client in clients], dtype=torch.float64)


def _on_cpu(trust: Tensor, update: Tensor, evidence: Tensor, agreed: bool) -> Verdict:
    return Verdict(trust.cpu(), update.cpu(), evidence.cpu(), agreed)


def _parted(state: State) -> tuple[dict[int, float], State]:
    """What clients were trusted, by id, and the inner fuse's state; empty but at the server."""
    return state.get("trust", {}), {key: value for key, value in state.items() if key != "trust"}


def _finish(
    fused: Fused, square: Params, verdict: Verdict, weights: Tensor, clients: tuple[int, ...], known: dict[int, float]
) -> Fused:
    metrics: Metrics = {
        **fused.metrics,
        "aggregator/trust": [round(value, 4) for value in verdict.trust.tolist()],
        "aggregator/trusted": effective_clients(weights),
    }
    told = dict(zip(clients, verdict.trust.tolist(), strict=True)) if verdict.agreed else {}
    given = fused.mean_square
    mean_square = float(square["square"]) if given is None else given
    return _remembering(fused._replace(metrics=metrics, mean_square=mean_square), known | told)


def _remembering(fused: Fused, known: dict[int, float]) -> Fused:
    return fused._replace(state={**fused.state, "trust": known})
