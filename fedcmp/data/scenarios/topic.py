"""Clients differ by topic: a Dirichlet distribution over topics for each client, fitted so that every sample is used.

The idea of Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification (2019, arXiv 1909.06335): client k draws its topics from q_k ~ Dir(alpha p), p the topics' shares of all
data. Differs from the paper: they draw a client's samples one by one until topics run out; here the matrix of expected
counts is fitted to the sizes of clients and topics (iterative proportional fitting), so that both are met exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, check_choice

TOPICS = ("label", "source", "cluster")
ALPHAS = (1e-6, 1e9)
"""Beyond them a client's distribution is one topic, or that of all data, to the last bit."""
LEAST = 16
"""Labels with fewer samples are one topic together, the domain's ``other``: so few cannot be spread over clients."""
SOFT = 100.0
"""Logarithms of probabilities shrink where they are large beside this: with zeros, no fit to the sizes may exist."""


@dataclass
class TopicConfig:
    """For `topic`: what the pictures of a client show."""

    alpha: float = 1.0
    """Concentration of the Dirichlet distribution over all topics together, from 1e-6 to 1e9: near 0 a client sees few
    topics, at 100 all see the same."""
    by: str = "label"
    """`label` (of its domain), `source` (the domain itself) or `cluster` (k-means over the frozen tower's features)."""
    clusters: int = 20
    """For `cluster`: how many, >= 2."""

    def validate(self, prefix: str) -> None:
        if not ALPHAS[0] <= self.alpha <= ALPHAS[1]:
            raise ConfigError(f"{prefix}.alpha must be from {ALPHAS[0]:g} to {ALPHAS[1]:g}, got {self.alpha}")
        check_choice(f"{prefix}.by", self.by, TOPICS)
        if self.clusters < 2:
            raise ConfigError(f"{prefix}.clusters must be at least 2, got {self.clusters}")

    def knobs(self) -> dict[str, object]:
        """The settings that act."""
        clusters = {"clusters": self.clusters} if self.by == "cluster" else {}
        return {"alpha": self.alpha, "by": self.by, **clusters}


def topics_of(samples: Sequence[Sample], by: str = "label") -> list[str]:
    """The topic of each sample.

    Args:
        samples: all training samples; their order does not matter.
        by: ``"source"``: the domain. ``"label"``: the topic that a sample names, else its label within its domain, for
            a cat of one domain is not that of another: ``DOMAIN/LABEL``, ``DOMAIN/other`` (labels of fewer than LEAST
            samples), ``DOMAIN/unlabelled``.
    """
    if by == "source":
        return [sample.domain for sample in samples]
    labels = ["unlabelled" if sample.label is None else sample.label for sample in samples]
    own = [sample.topic or f"{sample.domain}/{label}" for sample, label in zip(samples, labels, strict=True)]
    counts = Counter(own)
    return [
        f"{sample.domain}/other" if sample.label is not None and not sample.topic and counts[topic] < LEAST else topic
        for sample, topic in zip(samples, own, strict=True)
    ]


def is_unlabelled(topic: str) -> bool:
    """Whether a topic of ``topics_of`` says that its samples have no label."""
    return topic.endswith("/unlabelled")


def partition_topics(
    topics: Sequence[str], sizes: np.ndarray, alpha: float, rng: np.random.Generator
) -> list[list[int]]:
    """Partitions samples by topic.

    Args:
        topics: the topic of each sample, in random order.
        sizes: samples of each client, ``[K]``; their sum is the number of samples.
        alpha: concentration, > 0.
        rng: draws the clients' distributions.

    Returns:
        Places 0 .. n-1 by client.
    """
    number = {name: place for place, name in enumerate(sorted(set(topics)))}
    codes = np.fromiter((number[topic] for topic in topics), np.int64, len(topics))
    counts = topic_counts(np.bincount(codes, minlength=len(number)), sizes, alpha, rng)
    grouped = np.argsort(codes, kind="stable")  # topic by topic, at random within each
    owners = np.repeat(np.tile(np.arange(len(sizes)), len(number)), counts.T.ravel())
    by_client = grouped[np.argsort(owners, kind="stable")]
    return [part.tolist() for part in np.split(by_client, np.cumsum(sizes)[:-1])]


def topic_counts(totals: np.ndarray, sizes: np.ndarray, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """How many samples of each topic each client gets, ``[K, T]`` whole numbers.

    Args:
        totals: samples of each topic, ``[T]``: the sums of the columns.
        sizes: samples of each client, ``[K]``: the sums of the rows.
        alpha: concentration of q_k ~ Dir(alpha totals / n).
        rng: draws q, then the rounding.
    """
    if totals.sum() != sizes.sum():
        raise ValueError(f"{totals.sum()} samples in topics, {sizes.sum()} at clients")
    shares = _dirichlet(alpha * totals / totals.sum(), len(sizes), rng)
    expected = _fit(shares * sizes[:, None], sizes.astype(float), totals.astype(float))
    return _round(expected, sizes, totals, rng)


def _dirichlet(concentration: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows from a Dirichlet distribution, ``[rows, T]``, all of them positive.

    Gamma variables of shape a near 0 are smaller than any float: their logarithm is that of Gamma(a + 1) U^(1/a)
    (Marsaglia and Tsang, ACM TOMS 26(3), 2000). A log-probability l becomes -SOFT log(1 - l / SOFT): nearly itself
    where it matters (-5 becomes -4.9), in the same order and within a float's range where it only says which topic a
    client takes next when its favourites are used up (-10,000 becomes -462).
    """
    shape = (rows, len(concentration))
    logs = np.log(rng.standard_gamma(concentration + 1, shape)) + np.log1p(-rng.random(shape)) / concentration
    logs -= logs.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return np.exp(np.maximum(-SOFT * np.log1p(-logs / SOFT), -600))


def _fit(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray, rounds: int = 3000) -> np.ndarray:
    """The positive matrix scaled to sums of rows and columns (Deming and Stephan, Ann. Math. Stat. 11(4), 1940).

    The rest after ``rounds`` is corrected by one term of rank one (Altschuler, Weed and Rigollet, NeurIPS 2017, arXiv
    1705.09634, algorithm 2).
    """
    for _ in range(rounds):
        matrix = matrix * (columns / matrix.sum(axis=0))
        sums = matrix.sum(axis=1)
        matrix = matrix * (rows / sums)[:, None]
        if np.abs(sums - rows).max() < 0.01:
            break
    matrix = matrix * np.minimum(1, columns / matrix.sum(axis=0))
    missing_rows, missing_columns = rows - matrix.sum(axis=1), columns - matrix.sum(axis=0)
    return matrix + np.outer(missing_rows, missing_columns) / max(missing_rows.sum(), 1e-300)


def _round(expected: np.ndarray, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers near ``expected`` with exactly the sums of rows and columns.

    Each column is rounded by systematic sampling, so that a topic with one sample goes to client k with probability
    ``expected[k, t]``. Then clients with too many pass single samples to those with too few, of the topic that this
    brings nearest to what was expected.
    """
    offsets = rng.random(len(columns))
    steps = np.floor(np.cumsum(expected, axis=0) + offsets)
    steps[-1] = columns  # the sum of a column is whole but for rounding errors
    counts = np.diff(np.minimum(steps, columns), axis=0, prepend=0).astype(np.int64)
    excess = counts.sum(axis=1) - rows
    while excess.any():
        giver, taker = int(excess.argmax()), int(excess.argmin())
        gain = (counts - expected)[[giver, taker]]
        topic = int(np.where(counts[giver] > 0, gain[0] - gain[1], -np.inf).argmax())
        counts[giver, topic] -= 1
        counts[taker, topic] += 1
        excess[giver] -= 1
        excess[taker] += 1
    return counts
