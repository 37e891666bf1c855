"""Symmetric matrices: half of the work, half of the numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PANEL = 256
"""Fewest rows of a product that are computed at a time: thinner ones would waste what the processor can do."""


def symmetric_product(
    left: Tensor, right: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """``left right``, or ``beta plus + alpha left right``, where that is symmetric: ``[..., N, N]``.

    On a CPU large ones are computed in eight panels of rows up to the diagonal, 9/16 of the operations, and mirrored.

    Args:
        left: ``[..., N, D]``; with ``plus`` ``[B, N, D]``.
        right: ``[..., D, N]``.
        plus: symmetric, ``[B, N, N]``.

    >>> symmetric_product(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """

    def rows(first: int, end: int) -> Tensor:
        one, other = left[..., first:end, :], right[..., :end]
        if plus is None:
            return one @ other
        return torch.baddbmm(plus[..., first:end, :end], one, other, beta=beta, alpha=alpha)

    size = left.shape[-2]
    height = max(PANEL, -(-size // 8))
    if size <= height or left.device.type != "cpu":
        return rows(0, size)
    product = left.new_empty(*left.shape[:-1], size)
    for first in range(0, size, height):
        end = min(size, first + height)
        product[..., first:end, :end] = rows(first, end)
        product[..., :first, first:end] = product[..., first:end, :first].mT
    return product


def pack_symmetric(matrix: Tensor) -> Tensor:
    """The lower triangle of a symmetric ``[N, N]``, ``[N (N + 1) / 2]``: half of the numbers to send."""
    rows, columns = torch.tril_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def unpack_symmetric(triangle: Tensor) -> Tensor:
    """What ``pack_symmetric`` packed.

    >>> unpack_symmetric(pack_symmetric(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    size = math.isqrt(2 * len(triangle))
    rows, columns = torch.tril_indices(size, size, device=triangle.device)
    matrix = triangle.new_empty(size, size)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix
