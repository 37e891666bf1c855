"""Partitions: pure, complete, disjoint, and what their scenario says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedcmp.config import from_yaml, load_config, to_yaml
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import PartitionConfig, partition
from fedcmp.data.scenarios.config import QualityConfig, QuantityConfig, TopicConfig, parse_scenario
from fedcmp.data.scenarios.manifest import split_hash
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
    PartitionConfig("domain", 8),
    PartitionConfig("domain+quantity", 8, quantity=FEW),
    PartitionConfig("iid", 5),
    PartitionConfig("quality", 5),
    PartitionConfig("quantity", 5, quantity=FEW),
    PartitionConfig("topic", 6),
    PartitionConfig("topic", 6, topic=TopicConfig(0.1, "source")),
    PartitionConfig("topic+quantity+quality", 6, quantity=FEW),
]


def ids(split, samples) -> list[set[str]]:
    return [{samples[position].id for position in client} for client in split.clients]


def domains_of(clients) -> list[set[str]]:
    return [{SAMPLES[position].domain for position in client} for client in clients]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", CASES, ids=lambda config: f"{config.scenario}-{config.clients}")
def test_every_sample_has_one_owner_and_order_does_not_matter(config: PartitionConfig, seed: int) -> None:
    split = partition(SAMPLES, config, seed)
    assert sorted(position for client in split.clients for position in client) == list(range(len(SAMPLES)))
    assert len(split.clients) == config.clients
    turned = [SAMPLES[(7 * place) % len(SAMPLES)] for place in range(len(SAMPLES))]
    assert ids(split, SAMPLES) == ids(partition(turned, config, seed), turned)
    assert split == partition(SAMPLES, config, seed)
    if config.scenario != "domain" or config.mix:
        assert ids(split, SAMPLES) != ids(partition(SAMPLES, config, seed + 1), SAMPLES)


def test_domains_mix_as_asked() -> None:
    assert domains_of(partition(SAMPLES, PartitionConfig("domain", 4), 0).clients) == [{"a"}, {"b"}, {"c"}, {"d"}]
    shared = domains_of(partition(SAMPLES, PartitionConfig("domain", 8), 0).clients)
    assert shared == [{"a"}, {"b"}, {"c"}, {"d"}] * 2
    half = partition(SAMPLES, PartitionConfig("domain", 4, mix=0.5), 0).clients
    kept = [sum(SAMPLES[p].domain == name for p in client) for name, client in zip("abcd", half, strict=True)]
    assert all(10 <= count < 20 for count in kept)
    assert all(len(client) == 20 for client in half)


@pytest.mark.parametrize(("config", "known"), [
    (PartitionConfig("domain", 4, mix=0.5), "5bba7132560e182b"),
    (PartitionConfig("iid", 5), "256aaead3f451c68"),
])  # fmt: skip
def test_a_seed_deals_tomorrow_what_it_dealt_yesterday(config: PartitionConfig, known: str) -> None:
    """Goldens from before there were other scenarios."""
    split = partition(SAMPLES, config, 3)
    clients = {str(k): sorted(client) for k, client in enumerate(ids(split, SAMPLES))}
    assert split_hash(clients).startswith(known)
    assert split_hash(clients) == hashlib.sha256(json.dumps(clients, sort_keys=True).encode()).hexdigest()


def test_who_owns_a_domain_alone_keeps_its_share_of_it() -> None:
    config = PartitionConfig("domain+quantity", 4, quantity=QuantityConfig("zipf", s=1.0, min_samples=6))
    split = partition(SAMPLES, config, 5)
    assert domains_of(split.clients) == [{"a"}, {"b"}, {"c"}, {"d"}]
    assert sorted(map(len, split.clients)) == [6, 7, 10, 20]  # 20 / r, rounded up; the last would have 5
    even = QuantityConfig(sigma=0.0, min_samples=1)
    whole = partition(SAMPLES, PartitionConfig("domain+quantity", 4, quantity=even), 5)
    assert list(map(len, whole.clients)) == [20] * 4
    two = partition(SAMPLES, PartitionConfig("domain+quantity", 2, quantity=QuantityConfig("zipf", min_samples=1)), 5)
    assert domains_of(two.clients) == [{"a", "c"}, {"b", "d"}]
    assert sorted(map(len, two.clients)) == [20, 40]
    with pytest.raises(DataError, match=r"client 0 have 20 samples, fewer than partition\.quantity\.min_samples=21"):
        partition(SAMPLES, PartitionConfig("domain+quantity", 4, quantity=QuantityConfig(min_samples=21)), 0)
    with pytest.raises(DataError, match=r"domain a: 20 samples cannot give 2 clients"):
        partition(SAMPLES, PartitionConfig("domain+quantity", 8, quantity=QuantityConfig(min_samples=11)), 0)


def test_words_of_a_scenario() -> None:
    assert parse_scenario("quality+quantity") == ("iid", True, True)
    assert parse_scenario("domain+quality") == ("domain", True, False)
    assert parse_scenario("quality+domain") == ("domain", True, False)


@pytest.mark.parametrize(("override", "message"), [
    ("scenario=domian", r'partition\.scenario: unknown word .domian.; did you mean "domain"'),
    ("scenario=topic+qualty", r'partition\.scenario: unknown word .qualty.; did you mean "quality"'),
    ("scenario=topic+domain", r"partition\.scenario: topic and domain both partition"),
    ("scenario=quality+quality", r"partition\.scenario: quality stands twice"),
    ("scenario=topic+", r"partition\.scenario: unknown word ''"),
    ("mix=1.5", r"partition\.mix must be in \[0, 1\], got 1.5"),
    ("clients=0", r"partition\.clients must be at least 1"),
    ("topic.alpha=0", r"partition\.topic\.alpha must be a number above 0"),
    ("topic.by=lable", r'partition\.topic\.by.*did you mean "label"'),
    ("topic.clusters=1", r"partition\.topic\.clusters must be at least 2"),
    ("topic.aplha=1", r'unknown key `partition\.topic\.aplha`; did you mean "alpha"'),
    ("quality.clients=1.1", r"partition\.quality\.clients must be in \[0, 1\]"),
    ("quality.captions=-1", r"partition\.quality\.captions must be in \[0, 1\]"),
    ("quality.kind=shufled", r'partition\.quality\.kind.*did you mean "shuffled"'),
    ("quantity.kind=zip", r'partition\.quantity\.kind.*did you mean "zipf"'),
    ("quantity.sigma=-1", r"partition\.quantity\.sigma must be in \[0, 20\]"),
    ("quantity.min_samples=0", r"partition\.quantity\.min_samples must be at least 1"),
])  # fmt: skip
def test_bad_knobs_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"partition.{override}"])


def test_impossible_partitions() -> None:
    with pytest.raises(DataError, match=r"2 samples cannot be assigned to partition\.clients=3"):
        partition(SAMPLES[:2], PartitionConfig("iid", 3), 0)
    with pytest.raises(DataError, match=r"80 samples cannot give 5 clients partition\.quantity\.min_samples=17 each"):
        partition(SAMPLES, PartitionConfig("quantity", 5, quantity=QuantityConfig(min_samples=17)), 0)
    with pytest.raises(ConfigError, match=r"partition\.quality\.kind=foreign needs captions of others"):
        partition(SAMPLES, PartitionConfig("quality", 1, quality=QualityConfig(kind="foreign")), 0)
    with pytest.raises(ValueError, match="clusters are found before"):
        partition(SAMPLES, PartitionConfig("topic", 4, topic=TopicConfig(by="cluster")), 0)


def test_only_the_knobs_that_act_are_told() -> None:
    assert PartitionConfig("iid", 3).knobs() == {"clients": 3}
    assert PartitionConfig("domain", 3, mix=0.1).knobs() == {"clients": 3, "mix": 0.1}
    assert PartitionConfig("topic", 3).knobs() == {"clients": 3, "topic": {"alpha": 1.0, "by": "label"}}
    both = PartitionConfig("quality+quantity", 3, quantity=QuantityConfig("zipf", s=2.0)).knobs()
    assert both["quality"] == {"clients": 0.5, "captions": 1.0, "kind": "shuffled"}
    assert both["quantity"] == {"kind": "zipf", "s": 2.0, "min_samples": 32}


def test_every_knob_says_what_it_is() -> None:
    """A string stands below each field: it is the manual."""
    import ast

    from fedcmp.data.scenarios import config

    kinds = [node for node in ast.parse(Path(config.__file__).read_text()).body if isinstance(node, ast.ClassDef)]
    assert {kind.name for kind in kinds} >= {"TopicConfig", "QualityConfig", "QuantityConfig", "PartitionConfig"}
    for kind in kinds:
        for node, after in zip(kind.body, [*kind.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and kind.name != "Scenario":
                assert isinstance(after, ast.Expr), f"{kind.name}.{ast.unparse(node.target)} says nothing"


def test_a_domain_that_is_too_small_for_its_clients_is_named() -> None:
    few = [*SAMPLES[:20], *SAMPLES[20:22]]
    assert [len(client) for client in partition(few, PartitionConfig("domain", 4), 0).clients] == [10, 1, 10, 1]
    with pytest.raises(DataError, match=r"domain 'b' has 2 samples for 3 of partition\.clients=6 clients, .*; lower"):
        partition(few, PartitionConfig("domain", 6), 0)


def test_clients_are_domains_unless_something_else_is_said() -> None:
    for clients in (None, "domains", 4):
        split = partition(SAMPLES, PartitionConfig("domain", clients), 0)
        assert domains_of(split.clients) == [{"a"}, {"b"}, {"c"}, {"d"}]
        assert split.names == ("a", "b", "c", "d")
    assert len(partition(SAMPLES, PartitionConfig("iid"), 0).clients) == 8
    assert partition(SAMPLES, PartitionConfig("iid", 4), 0).names == ()


@pytest.mark.parametrize("clients", range(1, 13))
def test_who_has_one_whole_domain_has_its_name(clients: int) -> None:
    split = partition(SAMPLES, PartitionConfig("domain", clients), 0)
    held = domains_of(split.clients)
    for client, name in enumerate(split.names):
        (alone, *more) = held[client]
        whole = not more and sum(alone in one for one in held) == 1
        assert name == (alone if whole else str(client))


def test_no_domain_names_a_client_that_has_pictures_of_others() -> None:
    assert partition(SAMPLES, PartitionConfig("domain", mix=0.5), 0).names == ()
    given = PartitionConfig("domain", {"x": ["a", "b"], "y": ["c", "d"]}, mix=0.5)
    assert partition(SAMPLES, given, 0).names == ("x", "y")


def test_a_map_gives_domains_to_named_clients() -> None:
    config = load_config(None, ["partition.clients={south: [d, a], north: [b, c]}"])
    assert from_yaml(to_yaml(config), "again") == config
    split = partition(SAMPLES, config.partition, 0)
    assert domains_of(split.clients) == [{"b", "c"}, {"a", "d"}]
    assert split.names == ("north", "south")
    with pytest.raises(ConfigError, match=r"partition\.clients.*'e'"):
        partition(SAMPLES, PartitionConfig("domain", {"x": ["a", "e"], "y": ["b", "c", "d"]}), 0)
    with pytest.raises(ConfigError, match=r"partition\.clients.*'d'.*data\.domains"):
        partition(SAMPLES, PartitionConfig("domain", {"x": ["a"], "y": ["b", "c"]}), 0)


def test_records_name_their_clients() -> None:
    named = [replace(sample, client="ward 2" if place % 4 else "ward 1") for place, sample in enumerate(SAMPLES)]
    split = partition(named, PartitionConfig("domain", "given"), 0)
    assert split.names == ("ward 1", "ward 2")
    assert [{named[position].client for position in one} for one in split.clients] == [{"ward 1"}, {"ward 2"}]
    with pytest.raises(DataError, match=r"partition\.clients=given: 79 .*client.* b\.jsonl:1"):
        partition(
            [named[0], replace(SAMPLES[1], origin="b.jsonl:1"), *SAMPLES[2:]], PartitionConfig("domain", "given"), 0
        )
    with pytest.raises(ConfigError, match=r"partition\.clients.*printable.*'\\n'"):
        partition([replace(one, client="\n") for one in SAMPLES], PartitionConfig("domain", "given"), 0)


@pytest.mark.parametrize(("words", "named"), [
    (["partition.clients=eight"], "'eight'"),
    (["partition.clients=2.5"], "2.5"),
    (["partition.clients=true"], "True"),
    (["partition.clients={north: xray}"], "xray"),
    (["partition.clients={north: []}"], "north"),
    (["partition.clients={north: [xray], '': [ct]}"], "''"),
    (["partition.clients={north: [xray], south: [xray]}"], "'xray'"),
    (["partition.clients=domains", "partition.scenario=topic"], r"partition\.scenario"),
], ids=str)  # fmt: skip
def test_clients_that_cannot_be_are_named(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"partition\.clients.*{named}"):
        load_config(None, words)
