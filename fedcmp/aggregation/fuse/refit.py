"""Refitting: a layer that puts out what the clients' own layers do, behind the fused layers before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.evidence import Block
from fedcmp.aggregation.linalg import solve_right
from fedcmp.aggregation.symmetric import pack_symmetric, unpack_symmetric
from fedcmp.types import Params


def refitted_layers(blocks: Mapping[str, Sequence[Block]]) -> list[str]:
    """Affine layers that may be refitted: all but the first one, whose inputs are the same for every projector, and
    those whose moments are kept in blocks, which lack what the solution needs."""
    return [name for name in list(blocks)[1:] if len(blocks[name]) == 1]


def refit_terms(params: Params, before: Params, layer: str, ridge: float, contribution: Contribution) -> Params:
    """A client's moments of a layer.

    Args:
        params: the global projector.
        before: the delta of the fused layers before this one.
        layer: its name.
        ridge: l.
        contribution: of the client.
    """
    assert contribution.refit is not None, "the client was asked to refit"
    own = {name: at + contribution.delta[name] for name, at in params.items()}
    fused = {name: at + before[name] if name in before else at for name, at in params.items()}
    moments = contribution.refit(layer, own, fused)
    least = contribution.numbers(max(ridge, (2 * len(moments.inputs) / moments.tokens) ** 2))
    return {f"{layer}/inputs": pack_symmetric(moments.inputs), f"{layer}/gaps": moments.gaps, f"{layer}/ridge": least}


def refit(layer: str, total: Params, mean: Tensor) -> Tensor:
    """The delta ``[M, N']`` of a layer, float64.

    Args:
        layer: its name.
        total: the weighted sum of the clients' terms.
        mean: ``sum_k p_k D_k``, ``[M, N']``.

    Raises:
        AggregationError: the moments of the inputs are singular; with l above 0 they are not.
    """
    ridge = float(total[f"{layer}/ridge"])
    inputs = unpack_symmetric(total[f"{layer}/inputs"])
    scale = ridge * float(inputs.diagonal().mean())
    inputs.diagonal().add_(scale)
    what = f"what layer {layer} is refitted to (aggregator.fuse.ridge={ridge:g})"
    return solve_right(total[f"{layer}/gaps"] + scale * mean, inputs, what)
