"""Topics: exact margins, mixtures that alpha governs, and names that mean something."""

from __future__ import annotations

import numpy as np
import pytest

from fedcmp.data.records import Sample
from fedcmp.data.scenarios import PartitionConfig, partition
from fedcmp.data.scenarios.manifest import mean_overlap
from fedcmp.data.scenarios.quantity import even_sizes
from fedcmp.data.scenarios.topic import LEAST, TopicConfig, topic_counts, topics_of


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
def test_both_margins_are_exact(alpha: float) -> None:
    """Of topics and clients of very different sizes, some with a single sample."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        num_clients, num_topics = int(rng.integers(1, 40)), int(rng.integers(1, 60))
        totals = 1 + rng.geometric(0.02, num_topics)
        totals[rng.integers(num_topics)] = 1
        cuts = np.sort(rng.choice(np.arange(1, totals.sum()), num_clients - 1, replace=False))
        sizes = np.diff(cuts, prepend=0, append=totals.sum())
        counts = topic_counts(totals, sizes, alpha, np.random.default_rng(seed))
        assert counts.dtype == np.int64
        assert counts.min() >= 0
        assert counts.sum(axis=0).tolist() == totals.tolist()
        assert counts.sum(axis=1).tolist() == sizes.tolist()


@pytest.mark.parametrize("seed", range(2))
def test_alpha_governs_the_mixture(seed: int) -> None:
    totals, sizes = np.array([500, 300, 100, 50, 50] * 4), np.array([400, 400, 1000, 1000, 1200])
    overlaps = []
    for alpha in (0.01, 2.0, 100.0, 1e5):
        counts = topic_counts(totals, sizes, alpha, np.random.default_rng(seed))
        overlaps.append(mean_overlap(counts))
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < 0.25
    assert overlaps[-1] > 0.97
    assert np.abs(counts - np.outer(sizes, totals) / totals.sum()).max() < 5, "far above 1: those of all data"
    for alpha in (1e-4, 0.01, 0.1):
        few = topic_counts(np.full(10, 100), np.full(10, 100), alpha, np.random.default_rng(seed))
        assert (few > 0).sum(axis=1).mean() < 3.5, "nor does it get a little of everything when its favourite is gone"


def test_among_many_clients_the_mixtures_are_dirichlet_and_rounding_is_fair() -> None:
    """One of many is not fitted much: mean and spread are those of the distribution."""
    totals, sizes = np.array([60_000, 30_000, 10_000]), np.full(500, 200)
    shares = topic_counts(totals, sizes, 20.0, np.random.default_rng(0)) / 200
    prior = totals / totals.sum()
    assert shares.mean(axis=0) == pytest.approx(prior)
    assert shares.std(axis=0) == pytest.approx(np.sqrt(prior * (1 - prior) / 21), rel=0.1)
    counts = topic_counts(np.ones(3000, np.int64), even_sizes(3000, 6), 1e6, np.random.default_rng(1))
    assert counts.sum(axis=1).tolist() == [500] * 6
    assert counts[:, :1500].sum(axis=1) == pytest.approx(np.full(6, 250), abs=60)


def labelled(domain: str, label: str | None, count: int) -> list[Sample]:
    return [Sample(f"{domain}-{label}-{n}", "x.png", "a x", domain, label) for n in range(count)]


def test_a_label_belongs_to_its_domain() -> None:
    kinds = (("doodles", "cat", LEAST), ("waste", "cat", LEAST), ("waste", "rare", LEAST - 1), ("waste", "rarer", 1),
             ("shapes", None, 2))  # fmt: skip
    samples = [sample for kind in kinds for sample in labelled(*kind)]
    names = topics_of(samples)
    assert dict.fromkeys(names) == dict.fromkeys(["doodles/cat", "waste/cat", "waste/other", "shapes/unlabelled"])
    assert names.count("waste/other") == LEAST
    assert topics_of(samples[::-1]) == names[::-1]
    assert set(topics_of(samples, "source")) == {"doodles", "waste", "shapes"}
    assert topics_of([Sample("a", "x.png", "a x", "d", "1 2", topic="digit 1")]) == ["digit 1"]


def test_given_topics_are_assigned() -> None:
    samples, config = labelled("a", None, 40), PartitionConfig("topic", 2, topic=TopicConfig(1e-3, "cluster"))
    topics = ["even" if n % 2 else "odd" for n in range(40)]
    split = partition(samples, config, 0, topics)
    assert split.topics == tuple(topics)
    assert [len({topics[p] for p in client}) for client in split.clients] == [1, 1]
    with pytest.raises(ValueError, match="clusters"):
        partition(samples, config, 0)
