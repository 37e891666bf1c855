"""Evidence: second moments of what each affine layer has seen, accumulated while clients train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


class Evidence:
    """``G = mean of x~ x~^T`` with ``x~ = [x; 1]``, for each of C stacked clients and each affine layer.

    The layers' inputs are seen as they pass; there is no extra forward pass. Products and sums are float32: a client's
    round is at most some thousand batches, whose rounding is far below the sampling noise of the moments.

    Args:
        params: one projector, for the names and widths N of its affine layers.
        num_slots: C.
    """

    def __init__(self, params: Params, num_slots: int) -> None:
        weights = {name: params[f"{name}.weight"] for name in affine_layers(params)}
        widths = {name: (num_slots, weight.shape[1]) for name, weight in weights.items()}
        self._sums = {
            name: weights[name].new_zeros(*size, size[1], dtype=torch.float32) for name, size in widths.items()
        }
        self._firsts = {name: weights[name].new_zeros(size, dtype=torch.float32) for name, size in widths.items()}
        self._counts = {name: [0] * num_slots for name in weights}

    def observer(self, active: Sequence[int]) -> Callable[[str, Tensor], None]:
        """A function of a layer's name and its input ``[len(active), B, T, N]`` in one step.

        Args:
            active: the slots whose rows come, in the order of the stack.
        """

        def observe(name: str, inputs: Tensor) -> None:
            rows = inputs.detach().float().reshape(len(active), -1, inputs.shape[-1])
            for slot, own in zip(active, rows, strict=True):
                self._sums[name][slot].addmm_(own.T, own)
                self._firsts[name][slot] += own.sum(0)
                self._counts[name][slot] += len(own)

        return observe

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds up what several processes have seen of the same clients; ``total`` sums a tensor over them."""
        for name, counts in self._counts.items():
            self._sums[name], self._firsts[name] = total(self._sums[name]), total(self._firsts[name])
            seen = total(torch.tensor(counts, dtype=torch.float64, device=self._sums[name].device))
            self._counts[name] = [int(count) for count in seen.tolist()]

    def means(self, slot: int) -> Params:
        """The evidence of a client that took steps: per affine layer ``[N + 1, N + 1]``, symmetric, float32."""
        found: Params = {}
        for name, sums in self._sums.items():
            count, width = self._counts[name][slot], sums.shape[-1]
            mean = sums.new_ones(width + 1, width + 1)
            mean[:width, :width] = sums[slot] / count
            mean[:width, width] = mean[width, :width] = self._firsts[name][slot] / count
            found[name] = mean
        return found
