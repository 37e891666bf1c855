"""Reliability by repeatability: how far the second half of a client's steps repeats the first, per direction."""

from __future__ import annotations

import torch
from torch import Tensor


def repeatable_share(half: Tensor, whole: Tensor) -> Tensor:
    """``w = s / (s + z)`` of each column: how far the second half of the steps repeats the first, in [0, 1].

    Args:
        half: ``[M, r]`` coefficients after half of the steps.
        whole: ``[M, r]`` coefficients after all of them.

    >>> repeatable_share(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.5]])).tolist()
    [1.0, 0.0, 0.0]
    """
    signal = (half * (whole - half)).sum(0).clamp(min=0.0)
    noise = (2 * half - whole).square().sum(0) / 4
    total = signal + noise
    return torch.where(total > 0, signal / total.where(total > 0, 1.0), 0.0)


def fuse_repeated(
    mean: Tensor, vectors: Tensor, m: Tensor, squares: Tensor, repeatable: Tensor, least_overlap: float, undo: bool
) -> tuple[Tensor, Tensor]:
    """``D_rep`` of a layer, ``[M, N']``, and the overlap rho of its directions, ``[r]``, as in ``Canonical``.

    Args:
        mean: ``sum_k p_k D_k``, ``[M, N']``.
        vectors: U, ``[N', r]``.
        m: ``sum_k p_k w_k C_k``, ``[M, r]``.
        squares: ``sum_k p_k w_k |C_k|^2`` of each direction, ``[r]``.
        repeatable: w, ``[r]``.
        least_overlap: ``1 / K_eff``.
        undo: whether the delta is longer where rho is below w.
    """
    inside, heard = (mean.float() @ vectors).double(), repeatable > 0  # as exact as the clients' products
    total = repeatable.where(heard, 1.0)
    m, squares = (m / total).where(heard, inside), squares / total
    ratio = m.square().sum(0) / squares.where(squares > 0, 1.0)
    overlap = ratio.where(squares > 0, 1.0).clamp(least_overlap, 1.0)
    if undo:
        m = m * (repeatable / overlap).clamp(min=1.0)
    return mean + (m - inside).float() @ vectors.T, overlap
