"""What Fed-CMP releases in a round: bounds of its sums, and how the server reads them through noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.evidence import affine_layers
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.privacy.release import Part, Release, clip_norm
from fedcmp.types import Params

SHARES = {
    "delta": 0.4,
    "m": 0.2,
    "weighed": 0.15,
    "gram": 0.1,
    "evidence": 0.1,
    "squares": 0.03,
    "norms": 0.01,
    "repeatable": 0.01,
}
"""Of a round's budget: most for what moves the parameters directly, little for what only steers."""
SURE = 3.0
"""Standard deviations of noise that a number must be above to be believed."""


def release_canonical(rule: Aggregator, params: Params, config: PrivacyConfig, clip: float) -> Release:
    """The parts of both exchanges, with C = ``clip``, E = ``privacy.evidence_clip`` and L affine layers.

    Clients first bring their delta to ``|D| <= C`` (the halfway delta by the same factor) and their evidence to
    ``|G| <= E``, norms over all layers together. Then::

        delta       |D| <= C                                 (and parameters outside affine layers)
        gram        |D^T D / |D|^2|_F <= 1 a layer           sqrt(L)
        evidence    |G| <= E
        norms       (|G_l|^2, p |G_l|^2) of every layer      sqrt(2) E^2
        weighed     |D_l A(G_l)|_F <= |D_l|_F |G_l|_F        C E
        m           |w C_k|_F <= |D_k U|_F <= |D_k|_F        C
        squares     columns of w |C_k|^2                     C^2
        repeatable  w in [0, 1], for each direction          sqrt(sum of N'), as U may have all directions

    These only say that clipping a part to its bound changes nothing more; the clipping is done all the same.
    """
    fuse = rule.fuse
    assert isinstance(fuse, Canonical), "the table of releases says so"
    layers, evidence_clip = affine_layers(params), config.evidence_clip
    widths = [params[f"{name}.weight"].shape[1] + 1 for name in layers]
    bounds = {
        "delta": clip,
        "gram": math.sqrt(len(layers)),
        "evidence": evidence_clip,
        "norms": math.sqrt(2.0) * evidence_clip**2,
        "weighed": clip * evidence_clip,
        "m": clip,
        "squares": clip**2,
        "repeatable": math.sqrt(sum(widths)),
    }
    kept = _asked(fuse)
    names = {name for name in params if name.rpartition(".")[0] not in layers}

    def part_of(name: str) -> str | None:
        layer, slash, what = name.rpartition("/")
        if not slash:
            return "delta" if name in names else None
        what = "delta" if what == "mean" else what
        return what if layer in layers and what in kept else None

    def prepare(contribution: Contribution) -> Contribution:
        return _prepared(contribution, clip, evidence_clip)

    def clean(total: Params, deviation: Callable[[str], float], weight: float) -> Params:
        return _cleaned(total, deviation, weight, layers)

    return Release({what: Part(bounds[what], SHARES[what]) for what in kept}, part_of, prepare, clean)


def _asked(fuse: Canonical) -> list[str]:
    """The parts that a rule with these switches asks for."""
    kept = ["delta"]
    kept += ["gram"] if fuse.basis == "updates" else []
    if fuse.tau is None or fuse.basis == "evidence" or (fuse.evidence and fuse.tau != 1):
        kept += ["evidence", "norms"]
        kept += ["weighed"] if fuse.evidence and fuse.tau != 1 else []
    return kept + (["m", "squares", "repeatable"] if fuse.tau != 0 else [])


def _prepared(contribution: Contribution, clip: float, evidence_clip: float) -> Contribution:
    delta = clip_norm(contribution.delta, clip)
    halfway, evidence = contribution.halfway, contribution.evidence
    if halfway is not None:
        before, after = _norm(contribution.delta), _norm(delta)
        factor = after / before if before and math.isfinite(before) else 1.0
        halfway = {name: (value * factor).nan_to_num(0.0, 0.0, 0.0) for name, value in halfway.items()}
    if evidence is not None:
        evidence = clip_norm(evidence, evidence_clip)
    return replace(contribution, delta=delta, halfway=halfway, evidence=evidence)


def _norm(params: Params) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in params.values()))


def _cleaned(total: Params, deviation: Callable[[str], float], weight: float, layers: list[str]) -> Params:
    """Reads noisy second moments as if every client had a little more evidence in all directions.

    Symmetrised noise has eigenvalues up to about ``sqrt(2) sigma sqrt(N')``. ``G_k + f I`` in place of ``G_k``, with
    ``f = 2 sigma sqrt(N')``, lifts the sum above it. All that comes from G_k changes with it, so that the more noise
    there is, the nearer the evidence part comes to the mean (as for a large ridge), and tau to 1. Of the deltas' second
    moments, directions that noise alone may show are dropped; so are what is repeatable and what would extrapolate, as
    far as noise alone may show them: there the rule falls back to the mean. All of it is computed from what was
    released.
    """
    found = dict(total)
    for name in layers:
        if f"{name}/repeatable" in total:  # the second exchange
            repeatable, squares = total[f"{name}/repeatable"], total[f"{name}/squares"]
            least = SURE * deviation(f"{name}/repeatable")
            found[f"{name}/repeatable"] = repeatable.where(repeatable > least, 0.0).clamp(max=1.0)
            found[f"{name}/squares"] = (squares - SURE * deviation(f"{name}/squares")).clamp(min=0.0)
        gram, moments = total.get(f"{name}/gram"), total.get(f"{name}/evidence")
        if gram is not None:
            found[f"{name}/gram"] = _denoised(gram, deviation(f"{name}/gram"))
        if moments is None:
            continue
        sigma, size = deviation(f"{name}/evidence"), len(moments)
        floor = _edge(sigma, size)
        lifted = _symmetric(moments)
        trace = max(0.0, float(lifted.diagonal().sum()))
        lifted.diagonal().add_(floor)
        found[f"{name}/evidence"] = lifted
        # sum_k p |G_k + f I|^2 = sum_k p |G_k|^2 + 2 f tr(sum_k p G_k) + f^2 N'
        mean_square, squares = total[f"{name}/norms"].clamp(min=0.0).tolist()
        more = 2 * floor * trace + floor**2 * size
        energy = sigma**2 * size * (size + 1) / 2  # of the noise in |sum_k p G_k|^2, from which squares are taken
        norms = [mean_square + more, squares + weight * more + energy]
        found[f"{name}/norms"] = torch.tensor(norms, dtype=torch.float64, device=moments.device)
        if f"{name}/weighed" in total:  # D_k A(G_k + f I) = D_k A(G_k) + f D_k
            found[f"{name}/weighed"] = total[f"{name}/weighed"] + floor * total[f"{name}/mean"]
    return found


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _edge(sigma: float, size: int) -> float:
    """Above the eigenvalues of symmetrised noise, which end at about ``sqrt(2) sigma sqrt(N)``."""
    return 2.0 * sigma * math.sqrt(size)


def _denoised(gram: Tensor, sigma: float) -> Tensor:
    """The matrix without the eigenvalues that noise alone may show."""
    values, vectors = torch.linalg.eigh(_symmetric(gram))
    kept = values > _edge(sigma, len(gram))
    return (vectors[:, kept] * values[kept]) @ vectors[:, kept].T
