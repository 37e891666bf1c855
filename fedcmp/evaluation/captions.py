"""Greedy captions of held-out pictures, and of pictures that belong to no data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fedcmp.data.images import MAX_PIXELS
from fedcmp.data.loose import Picture, read_picture
from fedcmp.distributed.team import Solo, Team
from fedcmp.evaluation.losses import EvalData
from fedcmp.evaluation.sharing import write_rows
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment


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


def caption_loose(
    module: ProjectorAlignment,
    pictures: Sequence[Picture],
    max_tokens: int = 48,
    batch_size: int = 64,
    max_pixels: int = MAX_PIXELS,
) -> list[str]:
    """Greedy captions of pictures by the module's own projector, ``batch_size`` at a time.

    Raises:
        DataError: a picture cannot be read, or training would refuse it.
    """
    assert module.tower is not None, "without a tower there are no features"
    device, captions = next(module.projector.parameters()).device, list[str]()
    for begin in range(0, len(pictures), batch_size):
        part = enumerate(pictures[begin : begin + batch_size], begin)
        pixels = module.tower.preprocess([read_picture(picture, place, max_pixels) for place, picture in part])
        captions += module.captions({"pixels": pixels.to(device)}, max_tokens)
    return captions
