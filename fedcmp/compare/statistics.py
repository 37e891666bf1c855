"""Statistics of numbers by seed. A pair is one (setting, seed), in which two methods have the same data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

Key = Hashable
"""A seed, or a setting and a seed."""
Losses = Mapping[Key, float]
"""In nats per token."""
DECIMALS = 9
"""Losses are equal if they are in so many decimals."""


class Paired(NamedTuple):
    """Two methods over the same pairs."""

    pairs: int
    difference: float | None
    """Mean of one minus other; None: there are no pairs."""
    p: float | None
    """Two-sided, of the paired t-test; None for fewer than two pairs."""
    wins: int
    """How often the one was lower."""
    ties: int
    losses: int


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divisor n - 1); None for fewer than two values.

    >>> deviation([1.0, 3.0])
    1.4142135623730951
    """
    return statistics.stdev(values) if len(values) > 1 else None


def recovered(method: Losses, local: Losses, centralized: Losses) -> float | None:
    """The mean over seeds of ``(method - local) / (centralized - local)``: 0 as bad as alone, 1 as good as together.

    Seeds count that all three have, and on which centralized is better than local: else there is nothing to recover.
    None without any, and where it is not better by two standard errors over seeds: the share of a gap that may be 0
    can be anything.

    >>> recovered({1: 1.5, 2: 1.0}, {1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0})
    0.75
    """
    gaps = {seed: local[seed] - centralized[seed] for seed in method if seed in local and seed in centralized}
    error = statistics.stdev(gaps.values()) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    if not gaps or statistics.fmean(gaps.values()) <= 2 * error:
        return None
    return statistics.fmean((local[seed] - method[seed]) / gap for seed, gap in gaps.items() if gap > 0)


def paired(one: Losses, other: Losses) -> Paired:
    """Compares two methods over the pairs that both have.

    Over several settings the test takes every (setting, seed) as one pair: its hypothesis is that the two differ by
    nothing on average over these pairs.
    """
    pairs = [(loss, other[key]) for key, loss in one.items() if key in other]
    gaps = [one - other for one, other in pairs]
    signs = [round(gap, DECIMALS) for gap in gaps]
    wins, losses = sum(sign < 0 for sign in signs), sum(sign > 0 for sign in signs)
    mean = statistics.fmean(gaps) if gaps else None
    return Paired(len(gaps), mean, _t_test(pairs, gaps), wins, len(gaps) - wins - losses, losses)


def _t_test(pairs: Sequence[tuple[float, float]], gaps: Sequence[float]) -> float | None:
    if len(gaps) < 2:
        return None
    if round(max(gaps) - min(gaps), DECIMALS) == 0:  # all alike: t is 0 / 0 or infinite
        return 0.0 if round(gaps[0], DECIMALS) else 1.0
    from scipy import stats

    return float(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue)


def holm(ps: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction: p-values that may be compared with one level however many tests there were.

    With m of them in rising order, ``p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))``. None: there was no test.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    {'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': None}
    """
    tested = sorted((p, name) for name, p in ps.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(ps)
    highest = 0.0
    for place, (p, name) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * p))
        adjusted[name] = highest
    return adjusted


def mean_ranks(blocks: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean over blocks of each method's rank in them; 1 is the lowest loss.

    Equal losses share the mean of their ranks. None is a run that failed: it comes after all others.

    Args:
        blocks: one a (setting, seed): method -> loss, every method in every block.

    >>> mean_ranks([{"a": 1.0, "b": 2.0, "c": 2.0}, {"a": 3.0, "b": None, "c": 1.0}])
    {'a': 1.5, 'b': 2.75, 'c': 1.75}
    """
    from scipy.stats import rankdata

    names = list(blocks[0]) if blocks else []
    losses = [
        [math.inf if (loss := block[name]) is None else round(loss, DECIMALS) for name in names] for block in blocks
    ]
    ranks = [rankdata(row) for row in losses]
    return {name: float(statistics.fmean(row[place] for row in ranks)) for place, name in enumerate(names)}
