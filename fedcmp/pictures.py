"""What the frozen tower sees: features of samples, through the cache, and the clusters that topics may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fedcmp.data.features import FeatureTable, compute_features
from fedcmp.data.records import Sample
from fedcmp.data.scenarios.cluster import cluster, clusters_key, load_clusters, pool, save_clusters
from fedcmp.data.sources import Source
from fedcmp.distributed.team import Team, is_server, together
from fedcmp.models.backbones import ModelConfig, VisionTower, load_tower
from fedcmp.tracking.progress import Progress

SEEN_AT_ONCE = 2048
"""Pictures whose features are in memory together while clusters are made."""


def see(
    tower: VisionTower,
    source: Source,
    samples: Sequence[Sample],
    device: torch.device,
    cache: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> FeatureTable:
    """The tower's features of the samples' pictures, from the cache where it has them.

    Raises:
        DataError: a picture cannot be read, or the cache folder cannot be written.
    """
    return compute_features(
        source,
        samples,
        lambda pictures: tower.look(tower.preprocess(pictures).to(device)),
        cache=cache,
        key=_key(tower),
        progress=progress,
    )


def find_clusters(
    source: Source,
    samples: Sequence[Sample],
    model: ModelConfig,
    cache: Path,
    num_clusters: int,
    seed: int,
    team: Team,
    progress: Progress,
) -> list[str]:
    """The cluster of each sample: found once, by the server, the same on every rank, and kept beside the features.

    All ranks run the tower, each on its share of the pictures; a run then finds the features in the cache. Where the
    clusters are there already, only the server loads the tower, to know which they are.

    Args:
        source: gives pictures and their hashes.
        samples: the training samples; their order does not matter.
        model: names the tower.
        cache: folder of all caches.
        num_clusters: how many.
        seed: the run's seed.
        team: the ranks of this run; all of them call this.
        progress: bars.

    Raises:
        ConfigError: there are fewer different pictures than clusters.
        DataError: a picture cannot be read, or the cache folder cannot be written.
    """
    by_id = sorted(samples, key=lambda sample: sample.id)

    def load() -> VisionTower:
        return load_tower(model).to(team.device)

    def look() -> tuple[VisionTower, str, list[str] | None]:
        tower = load()
        digests = [source.digest(sample) for sample in by_id]
        key = clusters_key(tower.fingerprint, digests, by_id, num_clusters, seed)
        return tower, key, load_clusters(cache / _key(tower), key, len(by_id))

    def tables(tower: VisionTower, part: Sequence[Sample]) -> Iterator[FeatureTable]:
        with progress.bar(len(part), "training pictures, for clusters") as bar:
            for begin in range(0, len(part), SEEN_AT_ONCE):
                yield see(tower, source, part[begin : begin + SEEN_AT_ONCE], team.device, cache, bar)

    def fill() -> None:
        """This rank's share of the features goes into the cache."""
        tower = at_server[0] if at_server else load()
        for _ in tables(tower, by_id[team.rank :: team.topology.world_size]):
            pass

    def find() -> list[str]:
        tower, key, _ = at_server or look()
        found = cluster(np.concatenate([pool(table) for table in tables(tower, by_id)]), num_clusters, seed)
        save_clusters(cache / _key(tower), key, found)
        return found

    at_server = together(team, lambda: look() if is_server(team) else None)
    topics = (at_server[2] if at_server else None) or []
    if not team.share(len(topics)):
        if team.topology.world_size > 1:
            together(team, fill)
        topics = together(team, lambda: find() if is_server(team) else [])
    named = dict(zip((sample.id for sample in by_id), team.share(topics), strict=True))
    return [named[sample.id] for sample in samples]


def _key(tower: VisionTower) -> str:
    return tower.fingerprint[:32]
