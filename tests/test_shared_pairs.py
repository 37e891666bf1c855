"""The main job on real pairs, small: runs where the pairs and weights lie beside the checkout."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from fedcmp.config import load_config
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import build_source
from fedcmp.runs.data import read_data
from fedcmp.runs.plan import plan
from fedcmp.runs.train import train

CONFIGS = Path(__file__).parent.parent / "configs" / "scenarios"
CONFIG = CONFIGS / "domain.yaml"


@pytest.mark.shared
def test_eleven_domains_are_read_and_validation_and_test_are_alike(shared: Path) -> None:
    source = build_source(DataConfig(kind="pairs", root=str(shared / "pairs")))
    train = source.samples("train")
    assert len({sample.domain for sample in train}) == 11
    assert len(train) > 25_000
    for sample in source.samples("val")[::211]:
        assert source.image(sample).mode == "RGB"
    digests = {split: {source.digest(sample) for sample in source.samples(split)} for split in ("val", "test")}
    assert digests["val"].isdisjoint(digests["test"])
    val, test = (Counter(sample.domain for sample in source.samples(split)) for split in ("val", "test"))
    assert val.keys() == test.keys()
    assert all(abs(val[name] - test[name]) <= 3 for name in val)


@pytest.mark.shared
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scenario_can_be_planned(path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCMP_DATA", str(shared))
    found = plan(load_config(path, ["run.device=cpu"])).forecast
    assert min(client.held for client in found.clients) >= 4 * load_config(path).federation.batch_size
    assert found.share_used > 0.8


@pytest.mark.shared
def test_clusters_of_real_pictures_are_topics(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower's clusters know domains without being told."""
    monkeypatch.setenv("FEDCMP_DATA", str(shared))
    small = [
        f"model.tower={shared / 'weights' / 'mobilenet_v1_0.5_160'}", f"data.cache_dir={tmp_path}",
        "data.max_train_per_domain=24", "federation.rounds=1", "federation.local_steps=1", "federation.batch_size=4",
        "partition.topic.by=cluster", "partition.topic.clusters=12",
    ]  # fmt: skip
    data = read_data(load_config(CONFIGS / "topic.yaml", small))
    members = defaultdict(Counter)
    for topic, sample in zip(data.split.topics, data.train, strict=True):
        members[topic][sample.domain] += 1
    pure = sum(counts.most_common(1)[0][1] for counts in members.values()) / len(data.train)
    assert len(members) == 12
    assert pure > 0.7


@pytest.mark.shared
def test_a_small_domain_run_learns(shared: Path, tmp_path: Path) -> None:
    small = [
        f"run.dir={tmp_path / 'run'}", f"data.root={shared / 'pairs'}", f"data.cache_dir={tmp_path / 'cache'}",
        f"model.tower={shared / 'weights' / 'mobilenet_v1_0.5_160'}", f"model.llm={shared / 'weights' / 'caption_lm'}",
        "data.max_train_per_domain=32", "data.max_val_per_domain=8", "data.max_test_per_domain=8",
        "federation.rounds=2", "federation.local_steps=2", "federation.batch_size=8", "evaluation.captions=8",
        "wandb.mode=disabled",
    ]  # fmt: skip
    summary = train(load_config(CONFIG, small))
    assert summary["val/loss"]["end"] < summary["val/loss"]["start"] - 0.05
    assert len(summary["val/domains"]) == 8
    again = train(load_config(CONFIG, [*small, f"run.dir={tmp_path / 'again'}"]))
    assert again["projector_sha256"] == summary["projector_sha256"], "cached features change nothing"
