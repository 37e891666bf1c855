"""What a client's layers put out behind fused ones: its features of a round pass through two projectors again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcmp.aggregation.contribution import Moments, Refit
from fedcmp.aggregation.evidence import evidence_blocks
from fedcmp.aggregation.fuse.refit import refitted_layers
from fedcmp.models.projector import project
from fedcmp.types import Params

TOKENS = 128
"""Image tokens for each column of a layer that are enough; no more are kept."""


class Seen:
    """Image features that stacked clients have trained on in a round, until there are enough, float16 in main memory.

    They are kept, because pictures that are streamed would have to be read and encoded once more.

    Args:
        params: one projector.
        num_slots: C.
    """

    def __init__(self, params: Params, num_slots: int) -> None:
        layers = refitted_layers(evidence_blocks(params))
        self._enough = TOKENS * max((params[f"{name}.weight"].shape[1] + 1 for name in layers), default=0)
        self._kept: list[list[Tensor]] = [[] for _ in range(num_slots)]

    def add(self, active: Sequence[int], features: Tensor) -> None:
        """Features ``[n rows, T, d]`` of one step of n clients, in the order of ``active``."""
        for slot, own in zip(active, features.chunk(len(active)), strict=True):
            if sum(len(part) for part in self._kept[slot]) < self._enough:
                self._kept[slot].append(own.flatten(0, 1).half().cpu())

    def of(self, slot: int) -> list[Tensor]:
        """Those of a client, ``[n, d]`` a step."""
        return self._kept[slot]


def refit_on(steps: Callable[[], Iterable[Tensor]]) -> Refit:
    """The moments of a client.

    Args:
        steps: its image features, ``[n, d]`` a step; asked for anew each time.
    """

    @torch.no_grad()
    def moments(layer: str, own: Params, fused: Params) -> Moments:
        outputs, width = own[f"{layer}.weight"].shape
        inputs = own[f"{layer}.weight"].new_zeros(width + 1, width + 1)
        gaps, count = inputs.new_zeros(outputs, width + 1), 0
        for step in steps():
            features = step.to(inputs.device).float()
            wanted = _pass(layer, own, features)[1]
            rows, output = _pass(layer, fused, features)
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            inputs.addmm_(rows.T, rows)
            gaps.addmm_((wanted - output).T, rows)
            count += len(rows)
            if count >= TOKENS * (width + 1):
                break
        return Moments(inputs / count, gaps / count, count)

    return moments


def _pass(layer: str, params: Params, features: Tensor) -> tuple[Tensor, Tensor]:
    """Input ``[n, N]`` and output ``[n, M]`` of a layer, float32."""
    inputs: dict[str, Tensor] = {}
    project(params, features, inputs.__setitem__)
    rows = inputs[layer].float()
    return rows, F.linear(rows, params[f"{layer}.weight"], params[f"{layer}.bias"])
