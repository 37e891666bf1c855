"""The shared alignment basis from round to round: what is asked for in wide layers, and how far it turns."""

from __future__ import annotations

import torch
from torch import Tensor

from fedcmp.aggregation.evidence import Block
from fedcmp.aggregation.linalg import subspace_cosines, widen
from fedcmp.types import Metrics, Params


def is_wide(parts: list[Block]) -> bool:
    return len(parts) > 1


def probes_of(blocks: dict[str, list[Block]], before: Params) -> Params:
    """Of each wide layer, the block whose image under the Gram matrix is asked for: the last basis, a little wider."""
    found = {}
    for name, parts in blocks.items():
        if is_wide(parts):
            size, start = parts[-1].end, before.get(name)
            most = size // 8
            width = most if start is None else min(most, start.shape[1] + start.shape[1] // 8 + 16)
            found[name] = widen(start, size, width)
    return found


def turn(name: str, before: Tensor | None, now: Tensor) -> Metrics:
    """How far the basis turned since the last round: the mean and the largest principal angle, in degrees."""
    if before is None or not before.shape[1] or not now.shape[1]:
        return {}
    angles = torch.rad2deg(torch.acos(subspace_cosines(before, now)))
    return {
        f"aggregator/basis_turn/{name}": float(angles.mean()),
        f"aggregator/basis_turn_max/{name}": float(angles.max()),
    }
