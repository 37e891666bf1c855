"""split.json: the samples of each client, counted right."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.manifest import mean_overlap, overlap_matrix, records_hash
from fedcmp.data.scenarios.quality import QualityConfig
from fedcmp.data.scenarios.topic import LEAST, TopicConfig

SAMPLES = [
    Sample(f"{domain}{n:02}", "x.png", f"a {n}", domain, str(n % 2)) for domain in "ab" for n in range(2 * LEAST)
]
SPLITS = {"train": SAMPLES, "val": SAMPLES[:3], "test": SAMPLES[:4]}


def made(config: PartitionConfig, split: Partition | None = None) -> dict:
    content = manifest(split or partition(SAMPLES, config, 0), SPLITS, config)
    assert json.loads(json.dumps(content)) == content
    return content


def test_it_says_what_the_split_is() -> None:
    content = made(PartitionConfig("domain", 2))
    assert content.pop("clients")["1"] == [f"b{n:02}" for n in range(2 * LEAST)]
    assert content.pop("hash") != made(PartitionConfig("iid", 2))["hash"]
    assert content.pop("composition")["0"] == {"domains": {"a": 2 * LEAST}, "labels": {"a/0": LEAST, "a/1": LEAST}}
    assert content == {
        "seed": 0,
        "records": {name: records_hash(samples) for name, samples in SPLITS.items()},
        "scenario": "domain",
        "knobs": {"clients": 2, "mix": 0.0},
        "names": ["a", "b"],
        "sizes": [2 * LEAST, 2 * LEAST],
        "corrupted": {},
        "overlap": 0.0,
        "splits": {"train": len(SAMPLES), "val": 3, "test": 4},
    }


@pytest.mark.parametrize("field", ["id", "image", "caption", "domain", "label", "topic", "captions"])
def test_the_hash_of_records_is_of_all_that_they_say(field: str) -> None:
    many = [dataclasses.replace(SAMPLES[0], id=str(n)) for n in range(2500)]
    before = records_hash(many)
    for place in (0, 1500, 2499):
        other = dataclasses.replace(many[place], **{field: ("x",) if field == "captions" else "x"})
        assert records_hash([*many[:place], other, *many[place + 1 :]]) != before
    elsewhere = [dataclasses.replace(sample, origin=f"/other/{sample.origin}") for sample in many]
    assert records_hash(elsewhere) == before, "the place of their file is nothing that they say"
    assert records_hash(many[::-1]) != before


def test_corrupted_captions_are_listed() -> None:
    config = PartitionConfig("quality", 4, quality=QualityConfig(0.5, 0.25))
    split = partition(SAMPLES, config, 0)
    content = made(config, split._replace(corrupted=corrupt(SAMPLES, split.clients, config.quality, 0).positions))
    assert content["hash"] == made(PartitionConfig("iid", 4))["hash"], "it is of the owners alone"
    assert len(content["corrupted"]) == 2
    for client, ids in content["corrupted"].items():
        assert len(ids) == round(0.25 * content["sizes"][int(client)])
        assert set(ids) <= set(content["clients"][client])


def test_clusters_are_counted_too() -> None:
    config = PartitionConfig("topic", 2, topic=TopicConfig(1e-3, "cluster"))
    topics = [f"cluster {n % 2:02}" for n in range(len(SAMPLES))]
    content = made(config, partition(SAMPLES, config, 0, topics))
    found = sorted((one["topics"] for one in content["composition"].values()), key=str)
    assert found == [{"cluster 00": 32}, {"cluster 01": 32}]
    assert content["overlap"] == 0.0, "of topics, not of domains"
    assert content["knobs"]["topic"] == {"alpha": 1e-3, "by": "cluster", "clusters": 20}


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
