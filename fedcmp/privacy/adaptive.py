"""A clip that follows a quantile of the clients' norms."""

from __future__ import annotations

import math


def next_clip(clip: float, below: float, quantile: float, rate: float) -> float:
    """``C <- C exp(-rate (b - quantile))``: the bound of the next round.

    Args:
        clip: C, > 0.
        below: b, the noisy share of clients whose norm is at most C, in [0, 1].
        quantile: what that share should be, in (0, 1).
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
