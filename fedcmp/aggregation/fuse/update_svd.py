"""Merging in the space that the updates span together: KnOTS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort, single
from fedcmp.aggregation.evidence import affine_layers
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.ties import Ties
from fedcmp.aggregation.linalg import join_affine, split_affine
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.aggregation.symmetric import symmetric_product
from fedcmp.errors import check_choice
from fedcmp.types import Metrics, Params

TOLERANCE = 1e-5
"""Directions whose singular value is below this share of the largest are dropped: a delta in float32 knows nothing
below it, and its square, in the Gram matrix, is well above the rounding of float64 at M = 4096."""


@dataclass(frozen=True)
class UpdateSvd(Fuse):
    """For each affine layer, with ``D_k = [dW db]`` (M x N'), merges the clients' parts of one common decomposition::

        [D_1 ... D_K] = U S [V_1 ... V_K]            (U: M x r, V_k: r x N')
        D = U S merge(V_1, ..., V_K)

    ``merge`` is TIES over the V_k of all layers together, or the mean, which gives the mean of the deltas. Sums only:
    ``sum_k D_k D_k^T`` gives U and S^2, each client finds its own ``V_k = S^-1 U^T D_k``, and the merge takes one
    (mean) or two exchanges (TIES). Parameters outside affine layers are merged as they are, by themselves.

    Source: KnOTS, Stoica et al., ICLR 2025, arXiv 2410.19735.
    Differs from the paper: the means in the merge are weighted by p_k; its scaling of the merged update is the server
    learning rate; U and S come from a Gram matrix and directions below TOLERANCE are dropped; its code merges S V_k
    by default, its text V_k: see ``scaled``.
    """

    merge: str = "ties"
    """How the V_k become one: `ties` or `mean`."""
    density: float = 0.2
    """Share of the entries that TIES keeps, in (0, 1]."""
    scaled: bool = False
    """Merge S V_k in place of V_k, so that large directions have more of the entries that TIES keeps."""

    def __post_init__(self) -> None:
        check_choice("aggregator.fuse.merge", self.merge, ("ties", "mean"))
        require_number("aggregator.fuse.density", self.density, "(0, 1]")

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        layers = affine_layers(params)
        inside = {f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias")}
        outside = [name for name in params if name not in inside]
        merge: Fuse = Ties(self.density) if self.merge == "ties" else Mean()
        factors = cohort.share(cohort.on_server(_factorise, cohort.sum(partial(_grams, layers))))
        core, rest = partial(self._core, layers, factors), partial(_part, outside)
        cores = merge.fuse(MappedCohort(cohort, core), params, {}) if layers else None
        mean = Mean().fuse(cohort, params, {})
        others = merge.fuse(MappedCohort(cohort, rest), params, {}) if outside else None
        return cohort.on_server(self._finish, factors, cores, others, mean)

    def _core(self, layers: list[str], factors: Params, contribution: Contribution) -> Contribution:
        cores = {}
        for name in layers:
            core, values = factors[f"{name}/U"].T @ join_affine(contribution.delta, name).double(), factors[f"{name}/S"]
            inverse = torch.where(values > 0, 1.0 / values.where(values > 0, 1.0), 0.0)
            cores[name] = core if self.scaled else core * inverse[:, None]
        return replace(contribution, delta=cores)

    def _finish(self, factors: Params, cores: Fused | None, others: Fused | None, mean: Fused) -> Fused:
        delta: Params = dict(others.delta) if others else {}
        metrics: Metrics = {}
        for name, merged in (cores.delta if cores else {}).items():
            left, values, core = factors[f"{name}/U"], factors[f"{name}/S"], merged.double()
            delta |= split_affine(left @ (core if self.scaled else core * values[:, None]), name)
            metrics[f"aggregator/rank/{name}"] = int(values.count_nonzero())
        return mean._replace(delta=single({name: delta[name] for name in mean.delta}), metrics=metrics)


def _grams(layers: list[str], contribution: Contribution) -> Params:
    deltas = {name: join_affine(contribution.delta, name).double() for name in layers}
    return {name: symmetric_product(delta, delta.T) for name, delta in deltas.items()}


def _factorise(grams: Params) -> Params:
    factors: Params = {}
    for name, gram in grams.items():
        squares, vectors = torch.linalg.eigh(gram)
        squares, vectors = squares.flip(0).clamp(min=0.0), vectors.flip(1)
        # where no client moved there is one direction, of size 0
        kept = squares if gram.is_meta else squares[squares > TOLERANCE**2 * squares[0]]  # meta: shapes alone
        rank = max(1, len(kept))
        factors[f"{name}/U"], factors[f"{name}/S"] = vectors[:, :rank].contiguous(), squares[:rank].sqrt()
    return factors


def _part(names: list[str], contribution: Contribution) -> Contribution:
    return replace(contribution, delta={name: contribution.delta[name] for name in names})
