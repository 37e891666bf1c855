"""Greedy captions of held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedcmp.evaluation.losses import EvalData
from fedcmp.module import ProjectorAlignment
from fedcmp.types import Params


@torch.no_grad()
def caption(
    module: ProjectorAlignment, params: Params, data: EvalData, positions: Sequence[int], max_tokens: int = 48
) -> list[str]:
    """Greedy captions of the samples at ``positions`` by the projector ``params``."""
    module.eval()
    module.projector.load(params)
    texts: list[str] = []
    for begin in range(0, len(positions), data.batch_size):
        texts += module.captions(data.fetch(list(positions[begin : begin + data.batch_size])), max_tokens)
    return texts
