"""Evidence: second moments of what each affine layer has seen, accumulated while clients train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.types import Params


def affine_layers(params: Params) -> list[str]:
    """Names of the affine layers: those with a matrix ``name.weight`` and a vector ``name.bias``.

    >>> affine_layers({"norm.weight": torch.ones(3), "norm.bias": torch.ones(3),
    ...                "linear.weight": torch.ones(2, 3), "linear.bias": torch.ones(2)})
    ['linear']
    """
    names = [name.removesuffix(".weight") for name, value in params.items() if name.endswith(".weight")]
    return [name for name in names if params[f"{name}.weight"].dim() == 2 and f"{name}.bias" in params]


WIDE = 2048
"""Layers with more columns keep their evidence in blocks: N'^2 numbers and N'^3 operations are too much for them."""
BLOCK = 1024
"""Columns of such a block, roughly."""


class Block(NamedTuple):
    """Neighbouring columns of ``[W b]`` whose inputs' second moments are kept together."""

    name: str
    """``LAYER``, or ``LAYER/i`` where there are several."""
    first: int
    end: int
    """The column after the last one."""


def evidence_blocks(params: Params) -> dict[str, list[Block]]:
    """The blocks of each affine layer, in order: one of all N + 1 columns, or several of equal size in a wide layer.

    >>> evidence_blocks({"linear.weight": torch.empty(1, 4096), "linear.bias": torch.empty(1)})["linear"][1]
    Block(name='linear/1', first=1025, end=2049)
    """
    found = {}
    for name in affine_layers(params):
        width = params[f"{name}.weight"].shape[1] + 1
        num = round(width / BLOCK) if width > WIDE else 1
        ends = [-(-width * (place + 1) // num) for place in range(num)]
        found[name] = [
            Block(name if num == 1 else f"{name}/{place}", first, end)
            for place, (first, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]
    return found


class Evidence:
    """``G = mean of x~ x~^T`` with ``x~ = [x; 1]``, for each of C stacked clients and each affine layer.

    The layers' inputs are seen as they pass; there is no extra forward pass. Products and sums are float32: a client's
    round is at most some thousand batches, whose rounding is far below the sampling noise of the moments.

    Args:
        params: one projector, for the names and widths N of its affine layers.
        num_slots: C.
    """

    def __init__(self, params: Params, num_slots: int) -> None:
        self._blocks = evidence_blocks(params)
        self._sums: dict[str, Tensor] = {}
        self._firsts: dict[str, Tensor] = {}
        self._counts: dict[str, list[int]] = {name: [0] * num_slots for name in self._blocks}
        for name, blocks in self._blocks.items():
            weight = params[f"{name}.weight"]
            width = weight.shape[1]
            self._firsts[name] = torch.zeros(num_slots, width, device=weight.device)
            for block in blocks:
                size = min(block.end, width) - block.first
                self._sums[block.name] = torch.zeros(num_slots, size, size, device=weight.device)

    def observer(self, active: Sequence[int]) -> Callable[[str, Tensor], None]:
        """A function of a layer's name and its input ``[len(active), B, T, N]`` in one step.

        Args:
            active: the slots whose rows come, in the order of the stack.
        """

        def observe(name: str, inputs: Tensor) -> None:
            rows = inputs.detach().float().reshape(len(active), -1, inputs.shape[-1])
            for slot, own in zip(active, rows, strict=True):
                for block in self._blocks[name]:
                    part = own[:, block.first : block.end]
                    self._sums[block.name][slot].addmm_(part.T, part)
                self._firsts[name][slot] += own.sum(0)
                self._counts[name][slot] += len(own)

        return observe

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds up what several processes have seen of the same clients; ``total`` sums a tensor over them."""
        for name, blocks in self._blocks.items():
            for block in blocks:
                self._sums[block.name] = total(self._sums[block.name])
            self._firsts[name] = total(self._firsts[name])
            seen = total(torch.tensor(self._counts[name], dtype=torch.float64, device=self._firsts[name].device))
            self._counts[name] = [int(count) for count in seen.tolist()]

    def tokens(self, slot: int) -> int:
        """Image tokens of a client of which its evidence is the mean."""
        return max((counts[slot] for counts in self._counts.values()), default=0)

    def means(self, slot: int) -> Params:
        """The evidence of a client that took steps: ``[n, n]`` of each block's n columns, symmetric, float32."""
        found: Params = {}
        for name, blocks in self._blocks.items():
            count = self._counts[name][slot]
            for block in blocks:
                sums, firsts = self._sums[block.name][slot], self._firsts[name][slot][block.first : block.end]
                size, width = block.end - block.first, len(sums)
                mean = torch.empty(size, size, device=sums.device)
                mean[:width, :width] = sums / count
                if width < size:  # the last column belongs to the bias, whose input is 1
                    mean[:width, width] = mean[width, :width] = firsts / count
                    mean[width, width] = 1.0
                found[block.name] = mean
        return found


def similarity(means: list[Tensor], weighted: float, squared: float, square_weights: float) -> float:
    """tau: the mean of ``<G_j, G_k>`` over pairs of clients beside the mean of ``|G_k|^2``, in [0, 1].

    Args:
        means: the blocks of ``sum_k p_k G_k``.
        weighted: ``sum_k p_k |G_k|^2``.
        squared: ``sum_k p_k^2 |G_k|^2``.
        square_weights: ``sum_k p_k^2``.
    """
    scale = (1.0 - square_weights) * weighted
    if scale <= 1e-12 * weighted or weighted == 0.0:
        return 0.0
    return min(1.0, max(0.0, (sum(float(mean.square().sum()) for mean in means) - squared) / scale))
