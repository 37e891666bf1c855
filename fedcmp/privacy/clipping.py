"""What bounds a client's term, and a bound that follows a quantile of the clients' norms."""

from __future__ import annotations

import math

import torch

from fedcmp.types import Params


def clip_norm(params: Params, bound: float) -> Params:
    """``params``, scaled down to the norm ``bound`` over all of them; zeros if a value is not finite.

    >>> clip_norm({"w": torch.tensor([3.0, 4.0])}, 1.0)
    {'w': tensor([0.6000, 0.8000])}
    """
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in params.values()))
    if norm <= bound:
        return params
    if not math.isfinite(norm):  # 0 times inf is not 0
        return {name: torch.zeros_like(value) for name, value in params.items()}
    return {name: value * (bound / norm) for name, value in params.items()}


def next_clip(clip: float, below: float, quantile: float, rate: float) -> float:
    """``C <- C exp(-rate (b - quantile))``: the bound of the next round.

    Args:
        clip: C, > 0.
        below: b, the noisy share of clients whose norm is at most C, in [0, 1].
        quantile: the share wanted, in (0, 1).
        rate: > 0.

    Source: Andrew et al., NeurIPS 2021, arXiv 1905.03871, section 3.
    Differs from the paper: the noisy share is cut to [0, 1], so that noise alone cannot move the bound further than
    clients could; the noise multiplier of a round is that of deltas and count together, and their shares are fixed.

    >>> next_clip(2.0, 0.5, 0.5, 0.2)
    2.0
    >>> next_clip(2.0, 1.0, 0.5, 0.2) < 2.0 < next_clip(2.0, 0.0, 0.5, 0.2)
    True
    """
    return clip * math.exp(-rate * (below - quantile))
