"""Partitions: pure, complete, disjoint, what their scenario says, and written down right."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from fedcmp.config import from_yaml, load_config, to_yaml
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.manifest import mean_overlap, overlap_matrix, records_hash, split_hash
from fedcmp.data.scenarios.partition import SCENARIOS, parse_scenario
from fedcmp.data.scenarios.quality import QualityConfig
from fedcmp.data.scenarios.quantity import QuantityConfig, client_shares, sizes_from
from fedcmp.data.scenarios.topic import TopicConfig
from fedcmp.errors import ConfigError, DataError

SAMPLES = [
    Sample(f"{domain}-{n:02}", "x.png", f"caption {n} of {domain}", domain, str(n % 3))
    for domain in ("a", "b", "c", "d")
    for n in range(20)
]
FEW = QuantityConfig(min_samples=2)


def ids(split: Partition, samples: list[Sample] = SAMPLES) -> list[set[str]]:
    return [{samples[position].id for position in client} for client in split.clients]


def domains(config: PartitionConfig, seed: int = 0) -> list[set[str]]:
    return [{SAMPLES[p].domain for p in client} for client in partition(SAMPLES, config, seed).clients]


@pytest.mark.parametrize(("config", "known"), [
    (PartitionConfig("domain", 4, mix=0.5), "5bba7132560e182b"),
    (PartitionConfig("iid", 5), "256aaead3f451c68"),
    (PartitionConfig("domain+quantity", 3, quantity=FEW), "51f7d5e0b5d83a9e"),
    (PartitionConfig("quantity", 5, quantity=FEW), "c4ddfe826d695b5c"),
    (PartitionConfig("topic", 6), "000ec3fad65f55a6"),
    (PartitionConfig("topic+quantity", 6, topic=TopicConfig(0.1, "source"), quantity=FEW), "306ed5a5ee7d1334"),
])  # fmt: skip
def test_a_seed_assigns_tomorrow_what_it_assigned_yesterday(config: PartitionConfig, known: str) -> None:
    clients = {str(k): sorted(client) for k, client in enumerate(ids(partition(SAMPLES, config, 3)))}
    assert split_hash(clients)[:16] == known
    assert ids(partition(SAMPLES, config, 4)) != ids(partition(SAMPLES, config, 3))


def test_domains_mix_as_asked() -> None:
    assert domains(PartitionConfig("domain", 4)) == [{"a"}, {"b"}, {"c"}, {"d"}]
    assert domains(PartitionConfig("domain", 8)) == [{"a"}, {"b"}, {"c"}, {"d"}] * 2
    half = partition(SAMPLES, PartitionConfig("domain", 4, mix=0.5), 0).clients
    kept = [sum(SAMPLES[p].domain == name for p in client) for name, client in zip("abcd", half, strict=True)]
    assert all(10 <= count < 20 for count in kept)
    assert all(len(client) == 20 for client in half)


def test_the_only_owner_of_a_domain_keeps_its_share_of_it() -> None:
    config = PartitionConfig("domain+quantity", 4, quantity=QuantityConfig("zipf", s=1.0, min_samples=6))
    assert domains(config, 5) == [{"a"}, {"b"}, {"c"}, {"d"}]
    assert sorted(map(len, partition(SAMPLES, config, 5).clients)) == [6, 7, 10, 20]  # 20 / r, rounded up; the last: 5
    even = replace(config, quantity=QuantityConfig(sigma=0.0, min_samples=1))
    assert list(map(len, partition(SAMPLES, even, 5).clients)) == [20] * 4
    two = PartitionConfig("domain+quantity", 2, quantity=QuantityConfig("zipf", min_samples=1))
    assert domains(two, 5) == [{"a", "c"}, {"b", "d"}]


def test_sizes_are_exact_and_no_client_is_below_the_floor() -> None:
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
    samples = [Sample(f"{n:04}", "x.png", "a x", "d", str(n % 5)) for n in range(900)]
    config = QuantityConfig(sigma=1.5, min_samples=40)
    for scenario in ("quantity", "topic+quantity"):
        split = partition(samples, PartitionConfig(scenario, 9, quantity=config), 2)
        assert [len(client) for client in split.clients] == sizes_from(900, client_shares(9, config, 2), 40).tolist()


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


def test_words_of_a_scenario_and_the_knobs_that_act() -> None:
    assert parse_scenario("quality+quantity") == ("iid", True, True)
    assert parse_scenario("domain+quality") == parse_scenario("quality+domain") == ("domain", True, False)
    options = {name: row.options for name, row in SCENARIOS.items() if row.options}
    assert all(isinstance(getattr(PartitionConfig(), name), kind) for name, kind in options.items())
    assert PartitionConfig("iid", 3).knobs() == {"clients": 3}
    assert PartitionConfig("domain", 3, mix=0.1).knobs() == {"clients": 3, "mix": 0.1}
    assert PartitionConfig("topic", 3).knobs() == {"clients": 3, "topic": {"alpha": 1.0, "by": "label"}}
    both = PartitionConfig("quality+quantity", 3, quantity=QuantityConfig("zipf", s=2.0)).knobs()
    assert both["quality"] == {"clients": 0.5, "captions": 1.0, "kind": "shuffled"}
    assert both["quantity"] == {"kind": "zipf", "s": 2.0, "min_samples": 32}


@pytest.mark.parametrize(("key", "value"), [
    ("scenario", "domian"), ("scenario", "topic+domain"), ("scenario", "quality+quality"), ("scenario", "topic+"),
    ("mix", "1.5"), ("clients", "0"), ("topic.alpha", "0"), ("topic.by", "lable"), ("topic.clusters", "1"),
    ("quality.clients", "1.1"), ("quality.captions", "-1"), ("quality.kind", "shufled"),
    ("quantity.kind", "zip"), ("quantity.sigma", "-1"), ("quantity.min_samples", "0"),
    ("clients", "eight"), ("clients", "2.5"), ("clients", "true"), ("clients", "{north: xray}"), ("clients", "{}"),
    ("clients", "{north: []}"), ("clients", "{north: [xray], '': [ct]}"), ("clients", "{north: [x], south: [x]}"),
])  # fmt: skip
def test_bad_knobs_are_named(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"partition\.{key}"):
        load_config(None, [f"partition.{key}={value}"])


def test_impossible_partitions() -> None:
    few = [*SAMPLES[:20], *SAMPLES[20:22]]
    assert [len(client) for client in partition(few, PartitionConfig("domain", 4), 0).clients] == [10, 1, 10, 1]
    for samples, config, named in (
        (SAMPLES[:2], PartitionConfig("iid", 3), r"partition\.clients=3"),
        (few, PartitionConfig("domain", 6), r"partition\.clients: domain 'b'"),
        (SAMPLES, PartitionConfig("quantity", 5, quantity=QuantityConfig(min_samples=17)), "min_samples=17"),
        (SAMPLES, PartitionConfig("domain+quantity", 4, quantity=QuantityConfig(min_samples=21)), "min_samples=21"),
        (SAMPLES, PartitionConfig("domain+quantity", 8, quantity=QuantityConfig(min_samples=11)), "domain a"),
    ):
        with pytest.raises(DataError, match=named):
            partition(samples, config, 0)
    with pytest.raises(ConfigError, match=r"partition\.quality\.kind=foreign"):
        partition(SAMPLES, PartitionConfig("quality", 1, quality=QualityConfig(kind="foreign")), 0)
    with pytest.raises(ConfigError, match=r"partition\.scenario"):
        load_config(None, ["partition.clients=domains", "partition.scenario=topic"])


def test_a_client_of_one_whole_domain_has_its_name() -> None:
    for clients in range(1, 13):
        config = PartitionConfig("domain", clients)
        held = domains(config)
        for client, name in enumerate(partition(SAMPLES, config, 0).names):
            (alone, *more) = held[client]
            whole = not more and sum(alone in one for one in held) == 1
            assert name == (alone if whole else str(client))
    for clients in (None, "domains", 4):
        assert partition(SAMPLES, PartitionConfig("domain", clients), 0).names == ("a", "b", "c", "d")
    assert len(partition(SAMPLES, PartitionConfig("iid"), 0).clients) == 8
    assert partition(SAMPLES, PartitionConfig("iid", 4), 0).names == ()
    assert partition(SAMPLES, PartitionConfig("domain", mix=0.5), 0).names == (), "none has pictures of one alone"


def test_a_map_gives_domains_to_named_clients() -> None:
    config = load_config(None, ["partition.clients={south: [d, a], north: [b, c]}"])
    assert from_yaml(to_yaml(config), "again") == config
    assert domains(config.partition) == [{"b", "c"}, {"a", "d"}]
    for mix in (0.0, 0.5):
        assert partition(SAMPLES, replace(config.partition, mix=mix), 0).names == ("north", "south")
    for clients, domain in (({"x": ["a", "e"], "y": ["b", "c", "d"]}, "e"), ({"x": ["a"], "y": ["b", "c"]}, "d")):
        with pytest.raises(ConfigError, match=rf"partition\.clients.*'{domain}'"):
            partition(SAMPLES, PartitionConfig("domain", clients), 0)


def test_records_name_their_clients() -> None:
    config = PartitionConfig("domain", "given")
    named = [replace(sample, client="ward 2" if place % 4 else "ward 1") for place, sample in enumerate(SAMPLES)]
    split = partition(named, config, 0)
    assert split.names == ("ward 1", "ward 2")
    assert [{named[position].client for position in one} for one in split.clients] == [{"ward 1"}, {"ward 2"}]
    with pytest.raises(DataError, match=r"partition\.clients=given: b\.jsonl:1"):
        partition([named[0], replace(SAMPLES[1], origin="b.jsonl:1"), *SAMPLES[2:]], config, 0)
    with pytest.raises(ConfigError, match=r"partition\.clients.*'\\n'"):
        partition([replace(one, client="\n") for one in SAMPLES], config, 0)


SPLITS = {"train": SAMPLES, "val": SAMPLES[:3], "test": SAMPLES[:4]}


def test_the_manifest_says_what_the_split_is() -> None:
    config = PartitionConfig("domain", 4)
    split = partition(SAMPLES, config, 0)
    content = manifest(split, SPLITS, config)
    assert json.loads(json.dumps(content)) == content
    assert content.pop("clients")["1"] == [f"b-{n:02}" for n in range(20)]
    assert content.pop("hash") == split_hash({str(k): sorted(one) for k, one in enumerate(ids(split))})
    assert content.pop("composition")["0"] == {"domains": {"a": 20}, "labels": {"a/other": 20}}
    assert content == {
        "seed": 0,
        "records": {name: records_hash(samples) for name, samples in SPLITS.items()},
        "scenario": "domain",
        "knobs": {"clients": 4, "mix": 0.0},
        "names": ["a", "b", "c", "d"],
        "sizes": [20] * 4,
        "corrupted": {},
        "overlap": 0.0,
        "splits": {"train": 80, "val": 3, "test": 4},
    }


def test_the_manifest_lists_corrupted_captions_and_counts_clusters() -> None:
    config = PartitionConfig("quality", 4, quality=QualityConfig(0.5, 0.25))
    split = partition(SAMPLES, config, 0)
    corrupted = corrupt(SAMPLES, split.clients, config.quality, 0).positions
    content = manifest(split._replace(corrupted=corrupted), SPLITS, config)
    assert content["hash"] == manifest(split, SPLITS, config)["hash"], "it is of the owners alone"
    assert len(content["corrupted"]) == 2
    for client, named in content["corrupted"].items():
        assert len(named) == 5
        assert set(named) <= set(content["clients"][client])
    config = PartitionConfig("topic", 2, topic=TopicConfig(1e-3, "cluster"))
    content = manifest(partition(SAMPLES, config, 0, [f"cluster {n % 2:02}" for n in range(80)]), SPLITS, config)
    found = sorted((one["topics"] for one in content["composition"].values()), key=str)
    assert found == [{"cluster 00": 40}, {"cluster 01": 40}]
    assert content["overlap"] == 0.0, "of topics, not of domains"
    assert content["knobs"]["topic"] == {"alpha": 1e-3, "by": "cluster", "clusters": 20}


def test_the_hash_of_records_is_of_all_that_they_say() -> None:
    many = [dataclasses.replace(SAMPLES[0], id=str(n)) for n in range(2500)]
    before = records_hash(many)
    for field in ("id", "image", "caption", "domain", "label", "topic", "captions"):
        for place in (0, 1500, 2499):
            other = dataclasses.replace(many[place], **{field: ("x",) if field == "captions" else "x"})
            assert records_hash([*many[:place], other, *many[place + 1 :]]) != before
    assert records_hash([dataclasses.replace(one, origin="elsewhere") for one in many]) == before
    assert records_hash(many[::-1]) != before


def test_overlap_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (5, 7)) * rng.integers(0, 2, (5, 7)) + np.eye(5, 7, dtype=np.int64)
    found = overlap_matrix(counts)
    for k, one in enumerate(counts / counts.sum(1, keepdims=True)):
        for j, two in enumerate(counts / counts.sum(1, keepdims=True)):
            half = (one + two) / 2
            to_half = [sum(x * np.log2(x / m) for x, m in zip(p, half, strict=True) if x) for p in (one, two)]
            assert found[k, j] == pytest.approx(1 - sum(to_half) / 2)
    assert mean_overlap(counts) == pytest.approx((found.sum() - 5) / 20)
    assert mean_overlap(counts[:1]) == 1.0
