"""Partitions: pure, complete, disjoint, and what their scenario says."""

from __future__ import annotations

import pytest

from fedcmp.data.config import PartitionConfig
from fedcmp.data.partition import manifest, partition, subsample
from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, DataError

SAMPLES = [Sample(f"{domain}-{n}", "x.png", "a x.", domain) for domain in ("a", "b", "c", "d") for n in range(20)]


def domains_of(clients) -> list[set[str]]:
    return [{SAMPLES[position].domain for position in client} for client in clients]


@pytest.mark.parametrize("config", [
    PartitionConfig("domain", 4),
    PartitionConfig("domain", 4, mix=0.5),
    PartitionConfig("domain", 3),
    PartitionConfig("domain", 8),
    PartitionConfig("iid", 5),
])  # fmt: skip
def test_every_sample_has_one_owner_and_order_does_not_matter(config: PartitionConfig) -> None:
    split = partition(SAMPLES, config, seed=3)
    assert sorted(position for client in split.clients for position in client) == list(range(len(SAMPLES)))
    turned = SAMPLES[::-1]
    other = partition(turned, config, seed=3)
    assert manifest(split, SAMPLES)["hash"] == manifest(other, turned)["hash"]
    ids = [{SAMPLES[p].id for p in client} for client in split.clients]
    assert ids == [{turned[p].id for p in client} for client in other.clients]
    assert split == partition(SAMPLES, config, seed=3)
    if config.scenario == "iid" or config.mix:
        assert split != partition(SAMPLES, config, seed=4)


def test_domains_mix_as_asked() -> None:
    assert domains_of(partition(SAMPLES, PartitionConfig("domain", 4), 0).clients) == [{"a"}, {"b"}, {"c"}, {"d"}]
    shared = domains_of(partition(SAMPLES, PartitionConfig("domain", 8), 0).clients)
    assert shared == [{"a"}, {"b"}, {"c"}, {"d"}] * 2
    half = partition(SAMPLES, PartitionConfig("domain", 4, mix=0.5), 0).clients
    kept = [sum(SAMPLES[p].domain == name for p in client) for name, client in zip("abcd", half, strict=True)]
    assert all(10 <= count < 20 for count in kept)
    assert all(len(client) == 20 for client in half)


def test_subsample_takes_the_same_from_each_domain() -> None:
    some = subsample(SAMPLES, 5, seed=1)
    assert len(some) == 20
    assert some == subsample(SAMPLES, 5, seed=1)
    assert some != subsample(SAMPLES, 5, seed=2)
    assert subsample(SAMPLES, 0, seed=1) == SAMPLES


def test_impossible_partitions() -> None:
    with pytest.raises(DataError, match=r"2 samples cannot be dealt to partition\.clients=3"):
        partition(SAMPLES[:2], PartitionConfig("iid", 3), 0)
    with pytest.raises(ConfigError, match=r"partition\.mix must be in \[0, 1\], got 1.5"):
        PartitionConfig(mix=1.5).validate()
    with pytest.raises(ConfigError, match=r'partition\.scenario.*did you mean "domain"'):
        PartitionConfig("domian").validate()
