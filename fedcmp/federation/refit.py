"""What a client's layers put out behind fused ones: its samples of the round pass through two projectors again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcmp.aggregation.contribution import Moments, Refit
from fedcmp.federation.sampling import ClientTask
from fedcmp.models.projector import project
from fedcmp.types import Fetch, Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment

TOKENS = 128
"""Image tokens for each column of a layer that are enough. By domain the test loss was 0.097 with 16, 0.091 with 84."""


def refit_on(module: ProjectorAlignment, fetch: Fetch, task: ClientTask) -> Refit:
    """The moments of a client over the samples that it has trained on in a round, as many as are enough.

    The LLM is not run. Pictures without cached features pass through the tower again.
    """

    @torch.no_grad()
    def moments(layer: str, own: Params, fused: Params) -> Moments:
        outputs, width = own[f"{layer}.weight"].shape
        inputs = own[f"{layer}.weight"].new_zeros(width + 1, width + 1)
        gaps, count = inputs.new_zeros(outputs, width + 1), 0
        for batch in task.batches:
            # in another order than it was announced in: a stream reads it apart
            features = module.seen(fetch(list(reversed(batch))))["features"]
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
    """Input ``[n, N]`` and output ``[n, M]`` of a layer, float32, a row for each image token."""
    inputs: dict[str, Tensor] = {}
    project(params, features, inputs.__setitem__)
    rows = inputs[layer].float().flatten(0, -2)
    return rows, F.linear(rows, params[f"{layer}.weight"], params[f"{layer}.bias"])
