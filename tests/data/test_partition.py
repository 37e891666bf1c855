"""Partitions: pure, complete, disjoint, what their scenario says, and written down right; corrupted captions."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fedcmp.config import from_yaml, load_config, to_yaml
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.manifest import mean_overlap, overlap_matrix, records_hash, split_hash
from fedcmp.data.scenarios.partition import SCENARIOS, Row, parse_scenario
from fedcmp.data.scenarios.quality import CORRUPTIONS, TEMPLATE, QualityConfig
from fedcmp.data.scenarios.quantity import QuantityConfig, client_shares, sizes_from
from fedcmp.data.scenarios.topic import TopicConfig
from fedcmp.errors import ConfigError, DataError


def samples_of(domains: str, count: int) -> list[Sample]:
    return [
        Sample(f"{domain}-{n:02}", f"{n}.png", f"this is the caption with number {n} in {domain}", domain, str(n % 3))
        for domain in domains
        for n in range(count)
    ]


SAMPLES = samples_of("abcd", 20)
FEW = QuantityConfig(min_samples=2)


def ids(split: Partition) -> list[set[str]]:
    return [{SAMPLES[position].id for position in client} for client in split.clients]


def domains(config: PartitionConfig, seed: int = 0) -> list[set[str]]:
    return [{one[0] for one in client} for client in ids(partition(SAMPLES, config, seed))]


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
    half = ids(partition(SAMPLES, PartitionConfig("domain", 4, mix=0.5), 0))
    assert all(10 <= sum(one[0] == name for one in own) < 20 for name, own in zip("abcd", half, strict=True))
    assert list(map(len, half)) == [20] * 4
    config = PartitionConfig("domain+quantity", 4, quantity=QuantityConfig("zipf", s=0.5, min_samples=11))
    even = replace(config, quantity=QuantityConfig(sigma=0.0, min_samples=1))
    for one, sizes in ((config, [11, 12, 15, 20]), (even, [20] * 4)):  # 20 / sqrt(r), rounded up; the last: 10
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
    assert sizes_from(1000, np.array([0.6, 0.399, 0.001]), 100).tolist() == [541, 359, 100]
    config = QuantityConfig(sigma=1.5, min_samples=4)
    for scenario in ("quantity", "topic+quantity"):
        split = partition(SAMPLES, PartitionConfig(scenario, 9, quantity=config), 2)
        assert [len(client) for client in split.clients] == sizes_from(80, client_shares(9, config, 2), 4).tolist()


def test_impossible_partitions() -> None:
    few = SAMPLES[:22]
    assert [len(client) for client in partition(few, PartitionConfig("domain", 4), 0).clients] == [10, 1, 10, 1]
    for samples, config, named in (
        (SAMPLES[:2], PartitionConfig("iid", 3), r"partition\.clients=3"),
        (few, PartitionConfig("domain", 6), r"partition\.clients: domain 'b'"),
        (SAMPLES, PartitionConfig("quantity", 5, quantity=QuantityConfig(min_samples=17)), "min_samples=17"),
        (SAMPLES, PartitionConfig("domain+quantity", 4, quantity=QuantityConfig(min_samples=21)), "min_samples=21"),
        (SAMPLES, PartitionConfig("domain+quantity", 8, quantity=QuantityConfig(min_samples=11)), "domain a"),
        (SAMPLES, PartitionConfig("quality", 1, quality=QualityConfig(kind="foreign")), "quality.kind=foreign"),
    ):
        with pytest.raises((DataError, ConfigError), match=named):
            partition(samples, config, 0)
    with pytest.raises(ConfigError, match=r"partition\.scenario"):
        load_config(None, ["partition.clients=domains", "partition.scenario=topic"])


@pytest.mark.parametrize(("places", "named"), [
    ([[0, 1], [1]], "1 samples twice"), ([[0], [99]], "beyond the 22"), ([[0, 1]], "1 clients, expected 2"),
])  # fmt: skip
def test_a_scenario_that_assigns_what_it_must_not_is_named(
    places: list[list[int]], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCENARIOS, "wrong", Row(None, lambda *_: places))
    with pytest.raises(DataError, match=f"scenario=wrong .*{named}"):
        partition(SAMPLES[:22], PartitionConfig("wrong", 2), 0)


def test_a_scenario_gets_the_label_of_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setitem(SCENARIOS, "own", Row(None, lambda labels, *_: seen.extend(labels) or [[0], [1]]))
    partition(SAMPLES, PartitionConfig("own", 2), 0)
    assert Counter(seen) == Counter(sample.label or sample.domain for sample in SAMPLES)


def test_a_client_of_one_whole_domain_has_its_name() -> None:
    for clients, names in ((None, "abcd"), ("domains", "abcd"), (4, "abcd"), (3, "0bc"), (5, "0bcd4")):
        assert partition(SAMPLES, PartitionConfig("domain", clients), 0).names == tuple(names)
    assert partition(SAMPLES, PartitionConfig("domain", mix=0.5), 0).names == (), "none has pictures of one alone"
    assert len(partition(SAMPLES, PartitionConfig("iid"), 0).clients) == 8


def test_clients_are_named_by_a_map_or_by_records() -> None:
    config = load_config(None, ["partition.clients={south: [d, a], north: [b, c]}"])
    assert from_yaml(to_yaml(config), "again") == config
    assert domains(config.partition) == [{"b", "c"}, {"a", "d"}]
    assert partition(SAMPLES, replace(config.partition, mix=0.5), 0).names == ("north", "south")
    for clients, domain in (({"x": ["a", "e"], "y": ["b", "c", "d"]}, "e"), ({"x": ["a"], "y": ["b", "c"]}, "d")):
        with pytest.raises(ConfigError, match=rf"partition\.clients.*'{domain}'"):
            partition(SAMPLES, PartitionConfig("domain", clients), 0)
    given = PartitionConfig("domain", "given")
    named = [replace(sample, client="ward 2" if place % 4 else "ward 1") for place, sample in enumerate(SAMPLES)]
    split = partition(named, given, 0)
    assert split.names == ("ward 1", "ward 2")
    assert [{named[position].client for position in one} for one in split.clients] == [{"ward 1"}, {"ward 2"}]
    with pytest.raises(DataError, match=r"partition\.clients=given: b\.jsonl:1"):
        partition([named[0], replace(SAMPLES[1], origin="b.jsonl:1"), *SAMPLES[2:]], given, 0)
    with pytest.raises(ConfigError, match=r"partition\.clients.*'\\n'"):
        partition([replace(one, client="\n") for one in SAMPLES], given, 0)


def test_the_manifest_says_what_the_split_is() -> None:
    splits = {"train": SAMPLES, "val": SAMPLES[:3], "test": SAMPLES[:4]}
    config = PartitionConfig("domain+quality", 4, quality=QualityConfig(0.5, 0.25))
    split = partition(SAMPLES, config, 0)
    hurt = corrupt(SAMPLES, split.clients, config.quality, 0).positions
    content = manifest(split._replace(corrupted=hurt), splits, config)
    assert json.loads(json.dumps(content)) == content
    clients, composition, corrupted = (content.pop(key) for key in ("clients", "composition", "corrupted"))
    assert clients["1"] == [f"b-{n:02}" for n in range(20)]
    assert composition["0"] == {"domains": {"a": 20}, "labels": {"a/other": 20}}
    assert [len({*named} & {*clients[client]}) for client, named in corrupted.items()] == [5, 5]
    quality = {"clients": 0.5, "captions": 0.25, "kind": "shuffled"}
    assert content == {
        "seed": 0,
        "hash": split_hash(clients),
        "records": {name: records_hash(samples) for name, samples in splits.items()},
        "scenario": "domain+quality",
        "knobs": {"clients": 4, "mix": 0.0, "quality": quality},
        "names": ["a", "b", "c", "d"],
        "sizes": [20] * 4,
        "overlap": 0.0,
        "splits": {"train": 80, "val": 3, "test": 4},
    }
    config = PartitionConfig("topic", 2, topic=TopicConfig(1e-3, "cluster"))
    content = manifest(partition(SAMPLES, config, 0, [f"cluster {n % 2:02}" for n in range(80)]), splits, config)
    found = sorted((one["topics"] for one in content["composition"].values()), key=str)
    assert found == [{"cluster 00": 40}, {"cluster 01": 40}]
    assert content["overlap"] == 0.0, "of topics, not of domains"
    assert content["knobs"]["topic"] == {"alpha": 1e-3, "by": "cluster", "clusters": 20}
    with pytest.raises(ValueError, match="clusters"):
        partition(SAMPLES, config, 0)


def test_words_of_a_scenario_and_the_knobs_that_act() -> None:
    assert parse_scenario("domain+quality") == parse_scenario("quality+domain") == ("domain", True, False)
    config = PartitionConfig("iid+quantity", 4, mix=0.1, quantity=QuantityConfig("zipf", s=2.0, min_samples=1))
    assert config.knobs() == {"clients": 4, "quantity": {"kind": "zipf", "s": 2.0, "min_samples": 1}}


def test_the_hash_of_records_is_of_all_that_they_say_and_of_their_order() -> None:
    many = [replace(SAMPLES[0], id=str(n)) for n in range(2500)]  # in three parts
    found = [records_hash(many), records_hash(many[::-1])]
    for field in ("id", "image", "caption", "domain", "label", "topic", "captions"):
        for place in (0, 2499):
            other = replace(many[place], **{field: ("x",) if field == "captions" else "x"})
            found.append(records_hash([*many[:place], other, *many[place + 1 :]]))
    assert len(set(found)) == len(found) == 16
    assert records_hash([replace(one, origin="elsewhere") for one in many]) == found[0]


def test_overlap_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (5, 7)) * rng.integers(0, 2, (5, 7)) + np.eye(5, 7, dtype=np.int64)
    found, shares = overlap_matrix(counts), counts / counts.sum(1, keepdims=True)
    for (k, one), (j, two) in itertools.product(enumerate(shares), repeat=2):
        half = (one + two) / 2
        to_half = [sum(x * np.log2(x / m) for x, m in zip(p, half, strict=True) if x) for p in (one, two)]
        assert found[k, j] == pytest.approx(1 - sum(to_half) / 2)
    assert mean_overlap(counts) == pytest.approx((found.sum() - 5) / 20)
    assert mean_overlap(counts[:1]) == 1.0


NINE_WORDS = samples_of("abcde", 30)
OWNERS = partition(NINE_WORDS, PartitionConfig("domain", 5), 0)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_as_many_captions_are_corrupted_as_asked(kind: str) -> None:
    """Of which samples those are, a test of any partition says more."""
    turned = NINE_WORDS[::-1]
    turned_owners = partition(turned, PartitionConfig("domain", 5), 0)
    for clients, captions, num in ((0.4, 1.0, 2), (1.0, 0.5, 5), (0.05, 0.1, 1), (0.0, 1.0, 0), (0.6, 0.0, 0)):
        config = QualityConfig(clients, captions, kind)
        found = corrupt(NINE_WORDS, OWNERS.clients, config, 1)
        assert sorted(map(len, found.positions)) == [0] * (5 - num) + [round(30 * captions)] * num
        changed = [one.caption != two.caption for one, two in zip(NINE_WORDS, found.samples, strict=True)]
        assert [place for place, one in enumerate(changed) if one] == sorted(p for own in found.positions for p in own)
        other = corrupt(turned, turned_owners.clients, config, 1)
        assert other.samples[::-1] == found.samples, "the order of samples does not matter"
        again = corrupt(NINE_WORDS, OWNERS.clients, config, 2)
        assert captions in (0.0, 1.0) or found.positions != again.positions, "nor is it the same of another seed"


def test_kinds_of_corruption_do_what_they_say() -> None:
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


def test_corrupted_captions_change_their_text_where_that_can_be() -> None:
    for texts, kept in (("aabbc", 0), ("aaab", 2), ("aaaa", 4), ("aabb", 0), ("a", 1)):
        samples = [Sample(f"{n}", "x.png", text, "d") for n, text in enumerate(texts)]
        for seed in range(10):
            found = corrupt(samples, [range(len(texts))], QualityConfig(1.0, 1.0, "shuffled"), seed)
            after = [sample.caption for sample in found.samples]
            assert sum(one == two for one, two in zip(texts, after, strict=True)) == kept
            assert Counter(after) == Counter(texts)
    samples = [Sample(f"{n:02}", "x.png", "same" if n % 2 else f"own {n}", "d") for n in range(20)]
    for seed in range(5):  # foreign ones too, even if they are few
        found = corrupt(samples, [tuple(range(18)), (18, 19)], QualityConfig(1.0, 1.0, "foreign"), seed)
        assert {one.caption for one in found.samples[:18]} <= {"own 18", "same"}
        assert all(one.caption != two.caption for one, two in zip(found.samples, samples, strict=True))
    found = corrupt(NINE_WORDS, [(0, 1), (2, 3)], QualityConfig(1.0, 1.0, "foreign"), 0)
    assert found.samples[4:] == NINE_WORDS[4:], "samples of no client are left alone"
