"""Partitions: pure, complete, disjoint, and what their scenario says."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from fedcmp.config import from_yaml, load_config, to_yaml
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, PartitionConfig, partition
from fedcmp.data.scenarios.manifest import split_hash
from fedcmp.data.scenarios.partition import SCENARIOS, parse_scenario
from fedcmp.data.scenarios.quality import QualityConfig
from fedcmp.data.scenarios.quantity import QuantityConfig
from fedcmp.data.scenarios.topic import TopicConfig
from fedcmp.errors import ConfigError, DataError

SAMPLES = [
    Sample(f"{domain}-{n:02}", "x.png", f"caption {n} of {domain}", domain, str(n % 3))
    for domain in ("a", "b", "c", "d")
    for n in range(20)
]
FEW = QuantityConfig(min_samples=2)
CASES = [
    PartitionConfig("domain", 4),
    PartitionConfig("domain", 4, mix=0.5),
    PartitionConfig("domain", 3),
    PartitionConfig("domain+quantity", 8, quantity=FEW),
    PartitionConfig("iid", 5),
    PartitionConfig("quality", 5),
    PartitionConfig("quantity", 5, quantity=FEW),
    PartitionConfig("topic", 6, topic=TopicConfig(0.1, "source")),
    PartitionConfig("topic+quantity+quality", 6, quantity=FEW),
]


def ids(split: Partition, samples: list[Sample] = SAMPLES) -> list[set[str]]:
    return [{samples[position].id for position in client} for client in split.clients]


def domains(config: PartitionConfig, seed: int = 0) -> list[set[str]]:
    return [{SAMPLES[p].domain for p in client} for client in partition(SAMPLES, config, seed).clients]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CASES, ids=lambda config: f"{config.scenario}-{config.clients}")
def test_every_sample_has_one_owner_and_order_does_not_matter(config: PartitionConfig, seed: int) -> None:
    split = partition(SAMPLES, config, seed)
    assert sorted(position for client in split.clients for position in client) == list(range(len(SAMPLES)))
    assert len(split.clients) == config.clients
    turned = [SAMPLES[(7 * place) % len(SAMPLES)] for place in range(len(SAMPLES))]
    assert ids(split) == ids(partition(turned, config, seed), turned)
    assert split == partition(SAMPLES, config, seed)
    if config.scenario != "domain" or config.mix:
        assert ids(split) != ids(partition(SAMPLES, config, seed + 1))


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


def test_words_of_a_scenario() -> None:
    assert parse_scenario("quality+quantity") == ("iid", True, True)
    assert parse_scenario("domain+quality") == parse_scenario("quality+domain") == ("domain", True, False)
    options = {name: row.options for name, row in SCENARIOS.items() if row.options}
    assert {one.name for one in dataclasses.fields(PartitionConfig)} >= set(options)
    assert all(isinstance(getattr(PartitionConfig(), name), kind) for name, kind in options.items())


@pytest.mark.parametrize(("key", "value", "hint"), [
    ("scenario", "domian", "domain"), ("scenario", "topic+qualty", "quality"), ("scenario", "topic+domain", ""),
    ("scenario", "quality+quality", ""), ("scenario", "topic+", ""), ("mix", "1.5", ""), ("clients", "0", ""),
    ("topic.alpha", "0", ""), ("topic.by", "lable", "label"), ("topic.clusters", "1", ""),
    ("topic.aplha", "1", "alpha"),
    ("quality.clients", "1.1", ""), ("quality.captions", "-1", ""), ("quality.kind", "shufled", "shuffled"),
    ("quantity.kind", "zip", "zipf"), ("quantity.sigma", "-1", ""), ("quantity.min_samples", "0", ""),
    ("clients", "eight", ""), ("clients", "2.5", ""), ("clients", "true", ""), ("clients", "{north: xray}", ""),
    ("clients", "{north: []}", ""), ("clients", "{north: [xray], '': [ct]}", ""),
    ("clients", "{north: [xray], south: [xray]}", ""),
])  # fmt: skip
def test_bad_knobs_are_named(key: str, value: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"partition\.{key}") as caught:
        load_config(None, [f"partition.{key}={value}"])
    assert not hint or f'did you mean "{hint}"' in str(caught.value)


def test_impossible_partitions() -> None:
    few = [*SAMPLES[:20], *SAMPLES[20:22]]
    assert [len(client) for client in partition(few, PartitionConfig("domain", 4), 0).clients] == [10, 1, 10, 1]
    for samples, config, named in (
        (SAMPLES[:2], PartitionConfig("iid", 3), r"partition\.clients=3"),
        (few, PartitionConfig("domain", 6), r"partition\.clients=6: domain 'b'"),
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


def test_only_the_knobs_that_act_are_told() -> None:
    assert PartitionConfig("iid", 3).knobs() == {"clients": 3}
    assert PartitionConfig("domain", 3, mix=0.1).knobs() == {"clients": 3, "mix": 0.1}
    assert PartitionConfig("topic", 3).knobs() == {"clients": 3, "topic": {"alpha": 1.0, "by": "label"}}
    both = PartitionConfig("quality+quantity", 3, quantity=QuantityConfig("zipf", s=2.0)).knobs()
    assert both["quality"] == {"clients": 0.5, "captions": 1.0, "kind": "shuffled"}
    assert both["quantity"] == {"kind": "zipf", "s": 2.0, "min_samples": 32}


def test_a_client_of_one_whole_domain_has_its_name() -> None:
    for clients in range(1, 13):
        split, held = (
            partition(SAMPLES, PartitionConfig("domain", clients), 0),
            domains(PartitionConfig("domain", clients)),
        )
        for client, name in enumerate(split.names):
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
    with pytest.raises(DataError, match=r"partition\.clients=given: 79 .* b\.jsonl:1"):
        partition([named[0], replace(SAMPLES[1], origin="b.jsonl:1"), *SAMPLES[2:]], config, 0)
    with pytest.raises(ConfigError, match=r"partition\.clients.*'\\n'"):
        partition([replace(one, client="\n") for one in SAMPLES], config, 0)
