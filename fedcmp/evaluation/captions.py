"""Greedy captions of held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedcmp.distributed.team import Solo, Team
from fedcmp.evaluation.losses import EvalData
from fedcmp.evaluation.sharing import write_rows
from fedcmp.module import ProjectorAlignment
from fedcmp.types import Params


@torch.no_grad()
def caption(
    module: ProjectorAlignment,
    params: Params,
    data: EvalData,
    positions: Sequence[int],
    max_tokens: int = 48,
    team: Team | None = None,
) -> list[str]:
    """Greedy captions of the samples at ``positions`` by the projector ``params``, on every rank.

    Args:
        module: the frozen models; its projector becomes ``params``.
        params: the projector.
        data: the held-out samples.
        positions: which of them.
        max_tokens: the longest caption.
        team: ranks that share the pictures; their number does not change the captions. None: this one alone.
    """
    module.eval()
    module.projector.load(params)

    def write(rows: range) -> list[str]:
        return module.captions(data.fetch([positions[row] for row in rows]), max_tokens)

    return write_rows(team or Solo(), len(positions), data.batch_size, write)
