"""Canonical Reliability-Aware Aggregation: the fuse of Fed-CMP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, shares, single
from fedcmp.aggregation.diagnostics import histogram
from fedcmp.aggregation.evidence import Block, evidence_blocks, similarity
from fedcmp.aggregation.fuse.outcome import candidates, choose, is_late, vote
from fedcmp.aggregation.fuse.refit import refit, refit_terms, refitted_layers
from fedcmp.aggregation.fuse.repeatability import fuse_repeated, repeatable_share
from fedcmp.aggregation.fuse.shared_basis import is_wide, probes_of, turn
from fedcmp.aggregation.linalg import (
    Leading,
    affine_product,
    join_affine,
    leading_eigenvectors,
    refine_subspace,
    solve_right,
    split_affine,
    squared_norm,
)
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.aggregation.symmetric import moments_product, pack_symmetric, symmetric_product, unpack_symmetric
from fedcmp.errors import check_choice
from fedcmp.types import Metrics, Params

NOISE = 0.04
"""l is at least so many columns for each image token: evidence of few tokens says little of most directions."""

Blocks = dict[str, list[Block]]
"""The blocks of evidence of each affine layer."""


class _Layer(NamedTuple):
    """What the server knows about one affine layer after the first exchange."""

    mean: Tensor
    """``sum_k p_k D_k``, ``[M, N']``."""
    by_evidence: Tensor
    """``D_evi``, ``[M, N']``."""
    tau: float
    """Measured similarity of the clients' evidence; nan where it is not sent."""
    basis: Leading


class _Found(NamedTuple):
    """What the server has made of the updates."""

    deltas: dict[str, Params]
    """``"mean"``, and ``"mixture"`` or, late in a run, ``"evidence"``; float32."""
    basis: Params
    metrics: Metrics

    @property
    def asked(self) -> dict[str, Params]:
        """The deltas between which the outcome decides; empty: tau decides."""
        return self.deltas if "evidence" in self.deltas else {}


@dataclass(frozen=True)
class Canonical(Fuse):
    """Each client is weighed by its evidence, on request also by how far the second half of its steps repeats the
    first; layers after the first are refitted to what the clients' own put out.

    For each affine layer, with ``D_k = [dW db]`` (M x N'), its halfway value H_k and evidence G_k (N' x N'), a mean
    over n_k image tokens::

        g     = mean(diag sum_k p_k G_k),   l = max(ridge, sum_k p_k min(1, 0.04 N' / n_k))
        A_k   = a G_k + (1 - a) diag(G_k) + l g I,   S = sum_k p_k A_k        (a = 1)
        D_evi = sum_k D_k R_k,   R_k = p_k A_k S^-1                           (sum_k R_k = I)

    In layers after the first, D_evi is the least-squares fit to the outputs y_k that client k's own projector has there
    for its samples of the round, given the inputs x that the fused layers before it (their D_evi) make of them, with y
    the output of the global layer for x::

        S_k   = mean x~ x~^T,  X_k = mean (y_k - y) x~^T,  g = mean(diag sum_k p_k S_k)
        l'    = sum_k p_k max(ridge, (2 N' / n_k)^2)
        D_evi = (sum_k p_k X_k + l' g sum_k p_k D_k) (sum_k p_k S_k + l' g I)^-1

    In each layer, where ``repeatability`` or ``overlap`` is on (else D_rep is the mean)::

        U     = leading eigenvectors of sum_k p_k D_k^T D_k / |D_k|^2         (the shared alignment basis, N' x r)
        C_k   = D_k U                                                         (the client coefficients, M x r)
        s     = max(0, <H_k U, (D_k - H_k) U>),  z = |(2 H_k - D_k) U|^2 / 4  per column
        w_k   = s / (s + z),  w = sum_k p_k w_k                               (w_k = 1 if the client took one step)
        q_k   = p_k w_k / w                                                   (p_k where w = 0)
        m     = sum_k q_k C_k,   rho = |m|^2 / sum_k q_k |C_k|^2              clipped to [1 / K_eff, 1]
        D_rep = m U^T + (sum_k p_k D_k) (I - U U^T)

        tau   = (|sum p G_k|^2 - sum p^2 |G_k|^2) / ((1 - sum p^2) sum p |G_k|^2)
        D     = (1 - tau) D_evi + tau D_rep                                   while less than x of the run is done

    After that, D is the one of ``mean = sum_k p_k D_k``, D_evi and their middle with the least ``sum_k p_k v_k``: with
    L_k the losses of the three, each added to the parameters, on client k's next batch::

        v_k   = (L_k - min L_k) / (max L_k - min L_k)                         in [0, 1] for each of the three

    A client moves the choice by its weight at most. Where no client has a next batch, the last choice stays; without
    one D is D_evi. Early losses are not asked for: a longer step costs some now, and training makes up for it later.

    The weights p_k may hold a guard's trust and image use; they sum to 1. Parameters outside affine layers are
    averaged. A single client's delta is returned unchanged. Server memory does not depend on K: two exchanges of sums,
    late in a run the second of four numbers; one where tau is fixed at 0. One more for each layer that is refitted.

    Source: Fed-CMP, arXiv 2603.26786, of which only the abstract was public: this definition is ours. D_evi at l = 0 is
    RegMean (Jin et al., ICLR 2023, arXiv 2212.09849), whose scaling of the off-diagonal a = 0.9 is. max(1, w / rho) in
    the option ``overlap`` is FedExP's step (Jhunjhunwala et al., ICLR 2023, arXiv 2301.09604) per direction, with the
    measured w in the place of its constant 1/2. RegMean++ (Nguyen et al., arXiv 2508.03121) takes inputs behind fused
    layers, too, but outputs that the own layer has for these, not those that it was trained to have.
    Differs from the paper: unknown, derived from the abstract. The preset ``regmean`` is D_evi alone, with
    RegMean's a and our l (``ridge=0``: RegMean's formula). Also its G_k and p_k are of the round's steps, where
    RegMean looks at the data after training, and b is fused with W, where RegMean averages it.
    """

    evidence: bool = True
    """Weigh by evidence; off: ``D_evi`` is the mean."""
    refit: bool = True
    """Refit layers after the first of up to 2,048 columns; off, and in wider ones: by their evidence, as the first."""
    repeatability: bool = False
    """Weigh by repeatability, which is highest with wrong captions."""
    overlap: bool = False
    """Undo the shrinking of what few clients say: ``m max(1, w / rho)`` for m."""
    tau: float | None = None
    """Share of D_rep, by default the mean, in [0, 1], in all rounds; unset: the measured similarity of evidence."""
    explore: float = 0.65
    """Share x of the run, in [0, 1], in which tau decides; then, and in four last rounds, the outcome. 1, ``tau`` or no
    evidence: tau."""
    tau_from: str = "first"
    """Whose evidence measures tau: `first` (the first layer's, that is, the data's) or `each` layer its own."""
    basis: str = "updates"
    """What spans the shared basis: `updates` (as above), `evidence` (leading eigenvectors of S) or `none`: no basis."""
    energy: float = 0.99
    """Share of the trace that the basis has, in (0, 1]; at most an eighth of the directions in layers of more than
    2,048 columns."""
    correlation: float = 1.0
    """The share a of G_k's off-diagonal that counts, in [0, 1]; RegMean scales it by 0.9."""
    ridge: float = 0.01
    """The least share l of the mean evidence that every client has in every direction, >= 0; few image tokens raise it,
    unless it is 0."""

    def __post_init__(self) -> None:
        require_number("aggregator.fuse.tau", 0.0 if self.tau is None else self.tau, "[0, 1]")
        require_number("aggregator.fuse.explore", self.explore, "[0, 1]")
        check_choice("aggregator.fuse.tau_from", self.tau_from, ("first", "each"))
        check_choice("aggregator.fuse.basis", self.basis, ("updates", "evidence", "none"))
        require_number("aggregator.fuse.energy", self.energy, "(0, 1]")
        require_number("aggregator.fuse.correlation", self.correlation, "[0, 1]")
        require_number("aggregator.fuse.ridge", self.ridge, "[0, inf)")

    @property
    def needs(self) -> frozenset[str]:
        """``"evidence"``, ``"halfway"`` and ``"outcome"``, unless the switches leave them without use."""
        used = {
            "evidence": self._reads_evidence,
            "halfway": self.repeatability and self._splits,
            "outcome": self._asks,
            "refit": self.refit and self._weighs_evidence,
        }
        return frozenset(name for name, is_used in used.items() if is_used)

    @property
    def finds_basis(self) -> bool:
        """Whether there is a shared basis for the server step."""
        return self.basis != "none"

    def without_basis(self) -> Canonical:
        """The same where no server step needs the shared basis: it is found if the coefficients in it count."""
        return self if self._splits else replace(self, basis="none")

    @property
    def _splits(self) -> bool:
        """Whether coefficients in the shared basis count."""
        return (self.repeatability or self.overlap) and self.tau != 0 and self.basis != "none"

    @property
    def _reads_evidence(self) -> bool:
        return self.basis == "evidence" or self._weighs_evidence or (self.tau is None and self._splits)

    @property
    def _reads_all(self) -> bool:
        """Whether more than the first layer's evidence is read beside the weights."""
        return (self.tau is None and self.tau_from == "each") or self.basis == "evidence"

    @property
    def _asks(self) -> bool:
        return self.tau is None and self.explore < 1 and self.evidence

    @property
    def _weighs_evidence(self) -> bool:
        return self.evidence and self.tau != 1

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        """The delta of this round, its basis, and measures of overlap and repeatability."""
        blocks, before = evidence_blocks(params), state.get("basis", {})
        probes: Params = {}
        if self.basis == "updates" and any(is_wide(parts) for parts in blocks.values()):
            probes = cohort.share(cohort.on_server(probes_of, blocks, before) or {})
        share = shares(cohort)
        refits = refitted_layers(blocks) if "refit" in self.needs and len(cohort.clients) > 1 else []
        first = cohort.sum(partial(self._first_terms, blocks, refits, share, probes), cohort.weights)
        known = cohort.on_server(self._first_server, blocks, first, probes, cohort.counted, before)
        for name in refits:
            fused = cohort.share(cohort.on_server(self._fused_before, name, first, known) or {})
            terms = cohort.sum(partial(refit_terms, params, fused, name, self.ridge), cohort.weights)
            known = cohort.on_server(self._refitted, name, known, terms)
        second: Params = {}
        votes: Params = {}
        if self._splits and len(cohort.clients) > 1:
            basis = cohort.share(cohort.on_server(self._early_basis, first, known) or {})
            if basis:
                second = cohort.sum(partial(self._second_terms, basis), cohort.weights)
        found = cohort.on_server(self._candidates, list(blocks), first, known, second, before)
        if self._asks and len(cohort.clients) > 1:
            asked = cohort.share(found.asked if found else {})
            if asked:
                votes = cohort.sum(partial(vote, params, asked), cohort.weights)
        return cohort.on_server(self._finish, found, votes, state)

    def _early_basis(self, first: Params, known: dict[str, _Layer]) -> Params:
        """The shared basis where coefficients are wanted: late in a run the outcome decides without them."""
        late = self._asks and float(first["/facts"][0]) > 0.5  # on shapes, which have no numbers, it is early and late
        return {} if late else {name: layer.basis.vectors for name, layer in known.items()}

    def _fused_before(self, name: str, first: Params, known: dict[str, _Layer]) -> Params:
        """The delta of all that a layer's inputs pass through, float32."""
        fused = single(_outside(first))
        for other in list(known)[: list(known).index(name)]:
            fused |= split_affine(known[other].by_evidence.float(), other)
        return fused

    def _refitted(self, name: str, known: dict[str, _Layer], terms: Params) -> dict[str, _Layer]:
        return known | {name: known[name]._replace(by_evidence=refit(name, terms, known[name].mean))}

    def _first_terms(
        self,
        blocks: Blocks,
        refits: Sequence[str],
        share: dict[int, float],
        probes: Params,
        contribution: Contribution,
    ) -> Params:
        inside = {f"{name}.{leaf}" for name in blocks for leaf in ("weight", "bias")}
        terms = {name: value for name, value in contribution.delta.items() if name not in inside}
        weight = share[contribution.client_id] * contribution.factor
        terms["/facts"] = contribution.numbers(float(is_late(contribution, self.explore)), weight)
        for name, parts in blocks.items():
            delta = join_affine(contribution.delta, name)
            terms[f"{name}/mean"] = delta
            if self.basis == "updates":
                square = squared_norm({name: delta})
                scale = 1.0 / square if square else 0.0
                if name in probes:
                    terms[f"{name}/image"] = delta.T @ (delta @ probes[name]) * scale
                else:
                    terms[f"{name}/gram"] = pack_symmetric(symmetric_product(delta.T, delta) * scale)
            if not self._reads_evidence or (name in refits and not self._reads_all):
                continue
            assert contribution.evidence is not None, "the client was asked for evidence"
            moments = {part.name: contribution.evidence[part.name] for part in parts}
            norm = squared_norm(moments)
            few = NOISE * delta.shape[1] / contribution.image_tokens if contribution.image_tokens else 0.0
            terms[f"{name}/norms"] = contribution.numbers(norm, weight * norm, min(1.0, few))
            terms |= {f"{block}/evidence": pack_symmetric(own) for block, own in moments.items()}
            if self._weighs_evidence and name not in refits:
                weighed = [
                    moments_product(delta[:, part.first : part.end], self._mixed(moments[part.name].double()))
                    for part in parts
                ]
                terms[f"{name}/weighed"] = torch.cat(weighed, dim=1)
        return terms

    def _mixed(self, moments: Tensor) -> Tensor:
        mixed = self.correlation * moments
        mixed.diagonal().copy_(moments.diagonal())
        return mixed

    def _first_server(
        self, blocks: Blocks, first: Params, probes: Params, counted: float, before: Params
    ) -> dict[str, _Layer]:
        for name in ("/facts", *(f"{name}/norms" for name in blocks)):
            if name in first:
                first[name][1] /= counted  # it has a factor of weights twice
        return {
            name: self._layer(name, parts, first, probes.get(name), before.get(name)) for name, parts in blocks.items()
        }

    def _layer(
        self, name: str, parts: list[Block], first: Params, probe: Tensor | None, before: Tensor | None
    ) -> _Layer:
        mean = by_evidence = first[f"{name}/mean"]
        tau, totals, square_weights = float("nan"), [], float(first["/facts"][1])
        if f"{name}/norms" in first:
            moments = [unpack_symmetric(first[f"{part.name}/evidence"]) for part in parts]
            weighted, squared, few = first[f"{name}/norms"].tolist()
            tau = similarity(moments, weighted, squared, square_weights)
            ridge = max(self.ridge, few) if self.ridge else 0.0
            scale = ridge * float(torch.cat([part.diagonal() for part in moments]).mean())
            totals = [self._mixed(part) for part in moments]
            for total in totals:
                total.diagonal().add_(scale)
            if f"{name}/weighed" in first and square_weights < 1:
                what = f"the evidence of layer {name} (aggregator.fuse.ridge={self.ridge:g})"
                weighed = first[f"{name}/weighed"] + scale * mean
                solved = [
                    solve_right(weighed[:, part.first : part.end], total, what)
                    for part, total in zip(parts, totals, strict=True)
                ]
                by_evidence = torch.cat(solved, dim=1)
        if self.basis == "none":
            basis = Leading(mean.new_zeros(mean.shape[1], 0).float(), 0.0)
        elif probe is not None:
            basis = refine_subspace(probe, first[f"{name}/image"].float(), self.energy)
        else:
            spanned = unpack_symmetric(first[f"{name}/gram"]) if self.basis == "updates" else torch.block_diag(*totals)
            basis = leading_eigenvectors(spanned.float(), self.energy, before)
        return _Layer(mean, by_evidence, tau, basis)

    def _second_terms(self, basis: Params, contribution: Contribution) -> Params:
        terms: Params = {}
        for name, vectors in basis.items():
            coefficients = affine_product(contribution.delta, name, vectors).double()
            repeatable = torch.ones(vectors.shape[1], dtype=torch.float64, device=vectors.device)
            if self.repeatability and contribution.num_steps > 1:  # one step has no halves to compare
                assert contribution.halfway is not None, "the client was asked for its halfway delta"
                half = affine_product(contribution.halfway, name, vectors).double()
                repeatable = repeatable_share(half, coefficients)
            terms[f"{name}/m"] = (repeatable * coefficients).float()
            terms[f"{name}/squares"] = repeatable * coefficients.square().sum(0)
            terms[f"{name}/repeatable"] = repeatable
        return terms

    def _candidates(
        self,
        layers: list[str],
        first: Params,
        known: dict[str, _Layer],
        second: Params,
        before: Params,
    ) -> _Found:
        outside = single(_outside(first))
        explores = not self._asks or float(first["/facts"][0]) <= 0.5
        deltas = {what: dict(outside) for what in ("mean", "mixture" if explores else "evidence")}
        metrics: Metrics = {}
        for name in layers:
            layer, vectors = known[name], known[name].basis.vectors
            if self.basis != "none":
                metrics |= {f"aggregator/rank/{name}": vectors.shape[1]} | turn(name, before.get(name), vectors)
            if layer.tau == layer.tau:
                metrics[f"aggregator/tau/{name}"] = layer.tau
            tau = self.tau if self.tau is not None else known[layers[0] if self.tau_from == "first" else name].tau
            by_repeats = layer.mean
            if second:
                m, squares, repeatable = (second[f"{name}/{what}"] for what in ("m", "squares", "repeatable"))
                least = float(first["/facts"][1])
                by_repeats, overlap = fuse_repeated(layer.mean, vectors, m, squares, repeatable, least, self.overlap)
                for what, values in (("overlap", overlap), ("repeatability", repeatable)):
                    metrics[f"aggregator/{what}/{name}"] = float(values.mean()) if values.numel() else 1.0
                    metrics[f"aggregator/{what}/{name}/histogram"] = histogram(values)
            other = layer.by_evidence
            if explores and other is not by_repeats:
                other = (1 - tau) * other + tau * by_repeats
            for delta, value in zip(deltas.values(), (layer.mean, other), strict=True):
                delta |= split_affine(value.float(), name)
        return _Found(deltas, {name: known[name].basis.vectors for name in layers}, metrics)

    def _finish(self, found: _Found, votes: Params, state: State) -> Fused:
        kept: State = {"basis": found.basis} | {name: state[name] for name in ("votes",) if name in state}
        metrics, deltas, chosen = found.metrics, found.deltas, "evidence" if found.asked else "mixture"
        if votes and float(votes["votes"][-1]) != 0:  # on shapes nan, and kept
            kept["votes"] = votes["votes"]
        if found.asked and "votes" in kept:
            deltas = candidates(deltas["mean"], deltas["evidence"])
            chosen, regrets = choose(deltas, kept["votes"].tolist())
            metrics = metrics | regrets
        return Fused(deltas[chosen], deltas["mean"], kept, metrics, found.basis)


def _outside(first: Params) -> Params:
    """The means of what is in no affine layer."""
    return {name: value for name, value in first.items() if "/" not in name}
