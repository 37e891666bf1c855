"""How alike the clients' data are."""

from __future__ import annotations

import numpy as np


def overlap_matrix(counts: np.ndarray) -> np.ndarray:
    """1 - JS(p_k, p_l) for every two clients, ``[K, K]`` in [0, 1]: 1 the same mixture, 0 nothing in common.

    JS is the Jensen-Shannon divergence in bits (Lin, IEEE Trans. Inf. Theory 37(1), 1991).

    Args:
        counts: samples of each kind at each client, ``[K, T]``; no client is empty.

    >>> overlap_matrix(np.array([[2, 0], [0, 5], [1, 1]])).round(3)
    array([[1.   , 0.   , 0.689],
           [0.   , 1.   , 0.689],
           [0.689, 0.689, 1.   ]])
    """
    if not counts.sum(axis=1).all():
        raise ValueError("a client without samples has no mixture")
    shares = counts / counts.sum(axis=1, keepdims=True)
    own = _entropy(shares)
    rows = [1 - (_entropy((share + shares) / 2) - (one + own) / 2) for share, one in zip(shares, own, strict=True)]
    return np.clip(np.stack(rows), 0, 1)


def mean_overlap(counts: np.ndarray) -> float:
    """The mean over all pairs of clients; 1 where there is one client.

    >>> mean_overlap(np.array([[3, 1], [6, 2]]))
    1.0
    """
    if len(counts) == 1:
        return 1.0
    return float(overlap_matrix(counts)[np.triu_indices(len(counts), 1)].mean())


def _entropy(shares: np.ndarray) -> np.ndarray:
    """In bits, over the last axis."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=-1)
