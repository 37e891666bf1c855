"""Sizes: exact sums, a floor, and the shape that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from fedcmp.data.records import Sample
from fedcmp.data.scenarios import PartitionConfig, partition
from fedcmp.data.scenarios.quantity import QuantityConfig, client_shares, sizes_from


def test_sums_are_exact_and_no_client_is_below_the_floor() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shares = np.exp(3 * rng.standard_normal(int(rng.integers(1, 50))))
        least = int(rng.integers(0, 20))
        total = len(shares) * least + int(rng.integers(0, 5000))
        sizes = sizes_from(total, shares, least)
        assert sizes.sum() == total
        assert sizes.min() >= least
        assert (np.diff(sizes[np.argsort(shares)]) >= -1).all(), "the larger share gets no less, up to rounding"
    assert sizes_from(1000, np.array([0.5, 0.3, 0.2]), 10).tolist() == [500, 300, 200]
    assert sizes_from(1000, np.array([0.6, 0.399, 0.001]), 100).tolist() == [541, 359, 100]
    assert sizes_from(30, np.array([9.0, 1.0, 1.0]), 10).tolist() == [10, 10, 10]


def test_zipf_and_lognormal() -> None:
    zipf = client_shares(4, QuantityConfig("zipf", s=1.0), 0)
    assert sorted(zipf / zipf.max(), reverse=True) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    logs = np.log(client_shares(20_000, QuantityConfig(sigma=0.7), 0))
    assert logs.std() == pytest.approx(0.7, rel=0.03)
    assert ((logs - logs.mean()) ** 3).mean() == pytest.approx(0, abs=0.03)
    for even in (QuantityConfig(sigma=0.0), QuantityConfig("zipf", s=0.0)):
        assert client_shares(3, even, 0) == pytest.approx([1 / 3] * 3)
    orders = {tuple(np.argsort(client_shares(6, QuantityConfig("zipf"), seed))) for seed in range(5)}
    assert len(orders) > 1, "the seed says which client is large"


@pytest.mark.parametrize("scenario", ["quantity", "topic+quantity"])
def test_clients_have_these_sizes(scenario: str) -> None:
    samples = [Sample(f"{n:04}", "x.png", "a x", "d", str(n % 5)) for n in range(900)]
    config = QuantityConfig(sigma=1.5, min_samples=40)
    split = partition(samples, PartitionConfig(scenario, 9, quantity=config), 2)
    assert [len(client) for client in split.clients] == sizes_from(900, client_shares(9, config, 2), 40).tolist()
