"""The picture of a split shows what split.json says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcmp.data.records import Sample
from fedcmp.data.scenarios import PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.manifest import mean_overlap
from fedcmp.data.scenarios.quantity import QuantityConfig
from fedcmp.data.scenarios.topic import TopicConfig
from fedcmp.errors import RunFolderError
from fedcmp.report.split import COLUMNS, draw_split, shown_mixture

SAMPLES = [
    Sample(f"{domain}{n:03}", "x.png", f"a $1 {n}", f"domain with a long name {domain}", f"{n % 10}")
    for domain in "abc"
    for n in range(300)
]


def made(config: PartitionConfig, topics: list[str] | None = None, samples: list[Sample] = SAMPLES) -> dict:
    split = partition(samples, config, 0, topics)
    if "quality" in config.scenario:
        split = split._replace(corrupted=corrupt(samples, split.clients, config.quality, 0).positions)
    return manifest(split, {"train": samples}, config)


@pytest.mark.parametrize(("scenario", "clients"), [("domain", 1), ("topic+quality+quantity", 8), ("topic", 100)])
def test_a_png_and_a_pdf(scenario: str, clients: int, tmp_path: Path) -> None:
    content = made(PartitionConfig(scenario, clients, quantity=QuantityConfig(min_samples=2)))
    path = tmp_path / "figures" / "split.png"
    draw_split(content, path)
    with Image.open(path) as picture:
        assert min(picture.size) > 250
        pixels = np.asarray(picture.convert("RGB"), np.int16)
    red = (abs(pixels - (0xD5, 0x5E, 0x00)).sum(-1) < 30).sum()
    assert (red > 200) == ("quality" in scenario), "corrupted captions are seen"
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(RunFolderError, match=r"cannot write .*split\.png"):
        draw_split(content, path / "split.png")


def test_the_heat_map_shows_what_clients_differ_by() -> None:
    assert shown_mixture(made(PartitionConfig("domain", 3))).kind == "domain"
    assert shown_mixture(made(PartitionConfig("topic", 3, topic=TopicConfig(by="source")))).kind == "domain"
    topics = [f"cluster {n % 4:02}" for n in range(len(SAMPLES))]
    clusters = shown_mixture(made(PartitionConfig("topic", 3, topic=TopicConfig(by="cluster")), topics))
    assert clusters.kind == "topic"
    assert clusters.columns == ("cluster 00", "cluster 01", "cluster 02", "cluster 03")
    alone = [sample for sample in SAMPLES if sample.domain.endswith("a")]
    assert shown_mixture(made(PartitionConfig("iid", 2), samples=alone)).kind == "label", "there is but one domain"


def test_rare_kinds_share_a_column_and_nothing_is_lost() -> None:
    content = made(PartitionConfig("topic", 5))
    mixture = shown_mixture(content)
    assert (mixture.kind, len(mixture.columns), mixture.columns[-1]) == ("label", COLUMNS + 1, "10 others")
    assert mixture.counts.sum(axis=1).tolist() == content["sizes"]
    pairs = mixture.overlap[np.triu_indices(5, 1)]
    assert pairs.mean() == pytest.approx(content["overlap"]), "of all kinds, not of the columns"
    assert mean_overlap(mixture.counts) != pytest.approx(content["overlap"])
