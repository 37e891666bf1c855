"""Partitions: pure, complete, disjoint, what their scenario says, and written down right; corrupted captions."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fedcmp.config import from_yaml, load_config, to_yaml
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.manifest import mean_overlap, overlap_matrix, records_hash, split_hash
from fedcmp.data.scenarios.partition import SCENARIOS, parse_scenario
from fedcmp.data.scenarios.quality import CORRUPTIONS, TEMPLATE, QualityConfig
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


def test_domains_mix_as_asked_and_the_only_owner_of_one_keeps_its_share_of_it() -> None:
    assert domains(PartitionConfig("domain", 4)) == [{"a"}, {"b"}, {"c"}, {"d"}]
    assert domains(PartitionConfig("domain", 8)) == [{"a"}, {"b"}, {"c"}, {"d"}] * 2
    half = partition(SAMPLES, PartitionConfig("domain", 4, mix=0.5), 0).clients
    kept = [sum(SAMPLES[p].domain == name for p in client) for name, client in zip("abcd", half, strict=True)]
    assert all(10 <= count < 20 for count in kept)
    assert all(len(client) == 20 for client in half)
    config = PartitionConfig("domain+quantity", 4, quantity=QuantityConfig("zipf", s=1.0, min_samples=6))
    even = replace(config, quantity=QuantityConfig(sigma=0.0, min_samples=1))
    for one, sizes in ((config, [6, 7, 10, 20]), (even, [20] * 4)):  # 20 / r, rounded up; the last: 5
        assert domains(one, 5) == [{"a"}, {"b"}, {"c"}, {"d"}]
        assert sorted(map(len, partition(SAMPLES, one, 5).clients)) == sizes
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
    assert parse_scenario("domain+quality") == parse_scenario("quality+domain") == ("domain", True, False)
    options = {name: row.options for name, row in SCENARIOS.items() if row.options}
    assert all(isinstance(getattr(PartitionConfig(), name), kind) for name, kind in options.items())
    quality = {"clients": 0.5, "captions": 1.0, "kind": "shuffled"}
    for scenario, more in (
        ("iid", {}), ("domain", {"mix": 0.1}), ("topic", {"topic": {"alpha": 1.0, "by": "label"}}),
        ("quality+quantity", {"quality": quality, "quantity": {"kind": "zipf", "s": 2.0, "min_samples": 32}}),
    ):  # fmt: skip
        config = PartitionConfig(scenario, 3, mix=0.1, quantity=QuantityConfig("zipf", s=2.0))
        assert config.knobs() == {"clients": 3, **more}


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
    config = PartitionConfig("quality", 4, quality=QualityConfig(0.5, 0.25))
    split = partition(SAMPLES, config, 0)
    plain = manifest(split, SPLITS, config)
    content = manifest(
        split._replace(corrupted=corrupt(SAMPLES, split.clients, config.quality, 0).positions), SPLITS, config
    )
    assert content["hash"] == plain["hash"] == split_hash({str(k): sorted(one) for k, one in enumerate(ids(split))})
    assert len(content["corrupted"]) == 2
    for client, named in content["corrupted"].items():
        assert len(set(named) & set(content["clients"][client])) == len(named) == 5
    config = PartitionConfig("domain", 4)
    content = manifest(partition(SAMPLES, config, 0), SPLITS, config)
    assert json.loads(json.dumps(content)) == content
    assert content.pop("clients")["1"] == [f"b-{n:02}" for n in range(20)]
    assert content.pop("composition")["0"] == {"domains": {"a": 20}, "labels": {"a/other": 20}}
    assert content.pop("hash") != plain["hash"]
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
    config, topics = (
        PartitionConfig("topic", 2, topic=TopicConfig(1e-3, "cluster")),
        [f"cluster {n % 2:02}" for n in range(80)],
    )
    split = partition(SAMPLES, config, 0, topics)
    content = manifest(split, SPLITS, config)
    found = sorted((one["topics"] for one in content["composition"].values()), key=str)
    assert found == [{"cluster 00": 40}, {"cluster 01": 40}]
    assert content["overlap"] == 0.0, "of topics, not of domains"
    assert content["knobs"]["topic"] == {"alpha": 1e-3, "by": "cluster", "clusters": 20}
    assert split.topics == tuple(topics)
    with pytest.raises(ValueError, match="clusters"):
        partition(SAMPLES, config, 0)


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


NINE_WORDS = [
    Sample(f"{domain}-{n:02}", f"{n}.png", f"this is the caption with number {n} in {domain}", domain)
    for domain in ("a", "b", "c", "d", "e")
    for n in range(30)
]
OWNERS = partition(NINE_WORDS, PartitionConfig("domain", 5), 0)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("clients", "captions"), [(0.4, 1.0), (1.0, 0.5), (0.05, 0.1), (0.0, 1.0), (0.6, 0.0)])
def test_as_many_as_asked(kind: str, clients: float, captions: float) -> None:
    config = QualityConfig(clients, captions, kind)
    found = corrupt(NINE_WORDS, OWNERS.clients, config, 1)
    hurt = [positions for positions in found.positions if positions]
    assert len(hurt) == (0 if not clients * captions else max(1, round(5 * clients)))
    assert all(len(positions) == round(30 * captions) for positions in hurt)
    chosen = {position for positions in hurt for position in positions}
    for client, positions in zip(OWNERS.clients, found.positions, strict=True):
        assert set(positions) <= set(client)
    for position, (before, after) in enumerate(zip(NINE_WORDS, found.samples, strict=True)):
        assert (after.caption != before.caption) == (position in chosen)
        assert (after.id, after.image, after.domain) == (before.id, before.image, before.domain)
    turned = NINE_WORDS[::-1]
    other = corrupt(turned, partition(turned, PartitionConfig("domain", 5), 0).clients, config, 1)
    assert other.samples[::-1] == found.samples, "the order of samples does not matter"
    assert not chosen or found.positions != corrupt(NINE_WORDS, OWNERS.clients, config, 2).positions or captions == 1.0


def test_kinds_do_what_they_say() -> None:
    everything, after = {sample.caption for sample in NINE_WORDS}, {}
    for kind in CORRUPTIONS:
        found = corrupt(NINE_WORDS, OWNERS.clients, QualityConfig(1.0, 1.0, kind), 0).samples
        after[kind] = [[found[place].caption for place in client] for client in OWNERS.clients]
    assert after["template"] == [[TEMPLATE] * 30] * 5
    assert after["truncated"] == [["this is the"] * 30] * 5, "three of nine words"
    for client, shuffled, foreign in zip(OWNERS.clients, after["shuffled"], after["foreign"], strict=True):
        before = {NINE_WORDS[place].caption for place in client}
        assert set(shuffled) == before
        assert set(foreign) <= everything - before
        assert len(set(shuffled)) == len(set(foreign)) == 30, "each but once while there are enough"
    short = [Sample(str(n), "x.png", "cat dog"[: 3 + 4 * n], "d") for n in range(2)]
    found = corrupt(short, [(0, 1)], QualityConfig(1.0, 1.0, "truncated"), 0).samples
    assert [one.caption for one in found] == ["cat", "cat"], "one word is left"


@pytest.mark.parametrize(("texts", "kept"), [("aabbc", 0), ("aaab", 2), ("aaaa", 4), ("aabb", 0), ("a", 1)])
def test_shuffled_captions_change_their_text_where_that_can_be(texts: str, kept: int) -> None:
    samples = [Sample(f"{n}", "x.png", text, "d") for n, text in enumerate(texts)]
    for seed in range(10):
        found = corrupt(samples, [range(len(texts))], QualityConfig(1.0, 1.0, "shuffled"), seed)
        after = [sample.caption for sample in found.samples]
        assert sum(one == two for one, two in zip(texts, after, strict=True)) == kept
        assert Counter(after) == Counter(texts)


def test_foreign_captions_come_from_other_clients() -> None:
    samples = [Sample(f"{n:02}", "x.png", "same" if n % 2 else f"own {n}", "d") for n in range(20)]
    clients = [tuple(range(18)), (18, 19)]
    for seed in range(5):  # even if they are few
        found = corrupt(samples, clients, QualityConfig(1.0, 1.0, "foreign"), seed)
        assert {found.samples[p].caption for p in clients[0]} <= {"own 18", "same"}
        assert all(found.samples[p].caption != samples[p].caption for p in range(20))
    found = corrupt(NINE_WORDS, [(0, 1), (2, 3)], QualityConfig(1.0, 1.0, "foreign"), 0)
    assert found.samples[4:] == NINE_WORDS[4:], "samples of no client are left alone"
