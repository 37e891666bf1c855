"""Clusters as topics: the same on every rank, at every start, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

import fedcmp.pictures
from fedcmp.config import Config, load_config
from fedcmp.data.features import FeatureTable
from fedcmp.data.scenarios import Partition
from fedcmp.distributed.team import Groups, Topology
from fedcmp.errors import ConfigError, DataError
from fedcmp.pictures import cluster, pool
from fedcmp.runs.data import read_data

WORDS = [
    "data.scenes_per_camera=12", "data.val_scenes_per_camera=2", "data.test_scenes_per_camera=2",
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
    for harm in ("{", "[]", json.dumps({**content, "key": "other"}), json.dumps({**content, "topics": ["a"]}), None):
        kept.unlink() if harm is None else kept.write_text(harm)
        caplog.clear()
        assert read_data(config(tmp_path)).split == first.split, "they are computed again, to the same"
        assert (kept.name in caplog.text) == (harm is not None)
    assert len(set(read_data(config(tmp_path, "partition.topic.clusters=3")).split.topics)) == 3
    assert len(list(tmp_path.glob("*/clusters-*.json"))) == 2
    with pytest.raises(ConfigError, match=r"data\.cache_dir"):
        read_data(load_config(None, WORDS))


def groups() -> Groups:
    """The team of this forked rank."""
    topology = Topology(dist.get_world_size())
    return Groups(SimpleNamespace(topology=topology, global_rank=dist.get_rank(), root_device=torch.device("cpu")))


def test_all_ranks_have_the_same_topics_as_one_process(tmp_path: Path) -> None:
    alone = read_data(config(tmp_path / "alone")).split

    def assign() -> tuple[Partition, Partition]:
        first = read_data(config(tmp_path / "together"), groups()).split
        return first, read_data(config(tmp_path / "together"), groups()).split

    assert run_ranks(assign, 3) == [(alone, alone)] * 3


def test_a_rank_whose_tower_fails_ends_all(tmp_path: Path) -> None:
    def fail(*args: object, **more: object) -> None:
        raise DataError("a picture cannot be decoded")

    def assign() -> str:
        if dist.get_rank() == 1:
            fedcmp.pictures.compute_features = fail
        with pytest.raises(DataError, match="cannot be decoded") as caught:
            read_data(config(tmp_path), groups())
        return str(caught.value)

    said = run_ranks(assign, 2)
    assert [text == "a picture cannot be decoded" for text in said] == [False, True]
