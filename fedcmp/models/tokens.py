"""Fewer image tokens: the grid averaged, or folded into the width. Nothing here is learned."""

from __future__ import annotations

from torch import Tensor, nn

from fedcmp.errors import ConfigError


def check_grid(grid: tuple[int, int], token_grid: int, pixel_shuffle: int) -> None:
    """ConfigError if a tower's grid (rows, columns) is not square, too small, or no multiple of the factor."""
    rows, columns = grid
    gives = f"but the tower gives {rows} x {columns} tokens"
    if token_grid and (rows != columns or token_grid > rows):
        raise ConfigError(f"model.token_grid={token_grid} needs a square grid of at least that side, {gives}")
    if pixel_shuffle > 1 and (rows != columns or (token_grid or rows) % pixel_shuffle):
        raise ConfigError(f"model.pixel_shuffle={pixel_shuffle} needs a square grid that it divides, {gives}")


def average(features: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Means over (nearly) equal parts of the grid (H, W): ``[B, H * W, d]``, row by row, to ``[B, side * side, d]``."""
    maps = features.transpose(1, 2).unflatten(2, grid)
    return nn.functional.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)


def pixel_shuffle(features: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Space to depth: every r x r neighbours become one token that holds them row by row.

    Token (i, j) is the concatenation of tokens (r i + a, r j + b) for a, b = 0 .. r - 1, b fastest: a permutation of
    the numbers, the inverse of the sub-pixel shuffle of Shi et al., CVPR 2016, arXiv 1609.05158. For image tokens:
    InternVL 1.5 (Chen et al. 2024, arXiv 2404.16821) and Idefics3 (Laurençon et al. 2024, arXiv 2408.12637).

    ``[B, H * W, d]``, row by row, becomes ``[B, H * W / r^2, d * r^2]``.

    >>> import torch
    >>> pixel_shuffle(torch.arange(4.0).view(1, 4, 1), (2, 2), 2).tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]
    """
    rows, columns = grid
    cells = features.unflatten(1, (rows // factor, factor, columns // factor, factor))
    return cells.transpose(2, 3).flatten(3).flatten(1, 2)
