"""Symmetric matrices: half of the work, half of the numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

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


def moments_product(matrix: Tensor, moments: Tensor) -> Tensor:
    """``matrix moments`` by products in float32, about as exact as one in float64 that is then rounded: ``[M, N]``.

    Moments have one direction that is far larger than all others, the inputs' mean, and float32 rounds in proportion to
    it, which a solve by moments would multiply. So it is taken out, and multiplied in float64: with w near the first
    eigenvector of G and v = G w, rounded once, ``D G = D (G - v v^T / c) + (D v) v^T / c``, ``c = w^T v``.

    Args:
        matrix: D, ``[M, N]``, float32; of float64 all is float64.
        moments: G, float64, symmetric, positive semi-definite, ``[N, N]``.
    """
    leading = moments.sum(0)
    for _ in range(2):
        leading = normalize(moments @ leading, dim=0)
    image = (moments @ leading).to(matrix)
    along = leading @ image.double()
    share = (matrix.double() @ image.double()) * torch.where(along > 0, 1.0 / along, 0.0)
    rest = moments - torch.outer(image.double(), image.double() / along.where(along > 0, 1.0))
    size = len(rest)
    aligned = pad(rest.to(matrix), (0, -size % 16))  # odd widths, which a bias makes, take a CPU half as long again
    return torch.addr((matrix @ aligned)[:, :size], share.to(matrix), image)


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
