"""Topics: exact margins, mixtures that alpha governs, and clusters that are the same on every rank and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

import fedcmp.pictures
from fedcmp.config import Config, load_config
from fedcmp.data.features import FeatureTable
from fedcmp.data.records import Sample
from fedcmp.data.scenarios.manifest import mean_overlap
from fedcmp.data.scenarios.quantity import even_sizes
from fedcmp.data.scenarios.topic import LEAST, topic_counts, topics_of
from fedcmp.distributed.team import Groups, Topology
from fedcmp.errors import ConfigError, DataError
from fedcmp.pictures import cluster, pool
from fedcmp.runs.data import read_data


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


def test_alpha_governs_the_mixture() -> None:
    totals, sizes = np.array([500, 300, 100, 50, 50] * 4), np.array([400, 400, 1000, 1000, 1200])
    found = [topic_counts(totals, sizes, alpha, np.random.default_rng(0)) for alpha in (0.01, 2.0, 100.0, 1e5)]
    overlaps = list(map(mean_overlap, found))
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < 0.25
    assert np.abs(found[-1] - np.outer(sizes, totals) / totals.sum()).max() < 5, "far above 1: those of all data"
    for alpha in (1e-4, 0.01, 0.1):
        few = topic_counts(np.full(10, 100), np.full(10, 100), alpha, np.random.default_rng(0))
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


def test_a_label_belongs_to_its_domain() -> None:
    kinds = (("doodles", "cat", LEAST), ("waste", "cat", LEAST), ("waste", "rare", LEAST - 1), ("waste", "rarer", 1),
             ("shapes", None, 2))  # fmt: skip
    samples = [Sample(f"{a}-{label}-{n}", "x", "a x", a, label) for a, label, count in kinds for n in range(count)]
    names = topics_of(samples)
    assert dict.fromkeys(names) == dict.fromkeys(["doodles/cat", "waste/cat", "waste/other", "shapes/unlabelled"])
    assert names.count("waste/other") == LEAST
    assert topics_of(samples[::-1]) == names[::-1]
    assert set(topics_of(samples, "source")) == {"doodles", "waste", "shapes"}
    assert topics_of([Sample("a", "x.png", "a x", "d", "1 2", topic="digit 1")]) == ["digit 1"]


WORDS = [
    "data.scenes_per_camera=8", "data.val_scenes_per_camera=2", "data.test_scenes_per_camera=2",
    "data.domains=[plain,paper,noisy,striped]", "partition.scenario=topic", "partition.topic.by=cluster",
    "partition.topic.clusters=4", "partition.topic.alpha=0.1", "partition.clients=3", "federation.batch_size=4",
    "federation.rounds=2", "run.device=cpu",
]  # fmt: skip


def config(cache: Path, *words: str) -> Config:
    return load_config(None, [*WORDS, f"data.cache_dir={cache}", *words])


def test_clusters_are_found_and_named_by_size() -> None:
    rng = np.random.default_rng(0)
    parts = [centre + 0.05 * rng.standard_normal((n, 8)) for centre, n in zip(np.eye(3, 8), (5, 40, 20), strict=True)]
    vectors = np.concatenate(parts).astype(np.float32)
    names = cluster(vectors, 3, seed=1)
    assert names == ["cluster 02"] * 5 + ["cluster 00"] * 40 + ["cluster 01"] * 20 == cluster(vectors, 3, seed=1)
    with pytest.raises(ConfigError, match=r"partition\.topic\.clusters=3"):
        cluster(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), 3, seed=1)
    table = FeatureTable(torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[2.0, 0.0], [2.0, 0.0]]]).half(), [0, 1, 0])
    assert pool(table) == pytest.approx(np.array([[0.6, 0.8], [1.0, 0.0], [0.6, 0.8]]), abs=1e-3)


def test_a_second_run_finds_the_same_and_runs_no_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = read_data(config(tmp_path))
    assert 1 < len(set(first.split.topics)) <= 4
    (kept,) = tmp_path.glob("*/clusters-*.json")
    content = json.loads(kept.read_text())
    with monkeypatch.context() as patch:
        patch.setattr(fedcmp.pictures, "compute_features", None)
        assert read_data(config(tmp_path)).split == first.split
    for harm in ("{", json.dumps({**content, "key": "other"}), json.dumps({**content, "topics": ["a"]}), None):
        kept.unlink() if harm is None else kept.write_text(harm)
        caplog.clear()
        assert read_data(config(tmp_path)).split == first.split, "they are computed again, to the same"
        assert (kept.name in caplog.text) == (harm is not None)
    assert len(set(read_data(config(tmp_path, "partition.topic.clusters=3")).split.topics)) == 3
    assert len(list(tmp_path.glob("*/clusters-*.json"))) == 2
    with pytest.raises(ConfigError, match=r"data\.cache_dir"):
        read_data(load_config(None, WORDS))


def test_ranks_have_the_topics_of_one_process_and_all_end_where_a_tower_fails(tmp_path: Path) -> None:
    alone = read_data(config(tmp_path / "alone")).split

    def fail(*args: object, **more: object) -> None:
        raise DataError("a picture cannot be decoded")

    def assign() -> list[Any]:
        mine = SimpleNamespace(topology=Topology(3), global_rank=dist.get_rank(), root_device=torch.device("cpu"))
        found: list[Any] = [read_data(config(tmp_path / "together"), Groups(mine)).split for _ in range(2)]
        if dist.get_rank() == 1:
            fedcmp.pictures.compute_features = fail
        with pytest.raises(DataError, match="cannot be decoded") as caught:
            read_data(config(tmp_path / "none"), Groups(mine))
        return [*found, str(caught.value) == "a picture cannot be decoded"]

    assert run_ranks(assign, 3) == [[alone, alone, rank == 1] for rank in range(3)]
