"""What the frozen tower sees: features of samples, through the cache, and the clusters that topics may be."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fedcmp.data.features import FeatureTable, compute_features
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.distributed.team import Team, is_server, together
from fedcmp.errors import ConfigError, DataError
from fedcmp.models.backbones import ModelConfig, VisionTower, load_tower
from fedcmp.seeding import derive
from fedcmp.tracking.progress import Progress

log = logging.getLogger(__name__)
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

    def tables(tower: VisionTower, part: Sequence[Sample]) -> Iterator[FeatureTable]:
        with progress.bar(len(part), "encoding training pictures, for clusters") as bar:
            for begin in range(0, len(part), SEEN_AT_ONCE):
                yield see(tower, source, part[begin : begin + SEEN_AT_ONCE], team.device, cache, bar)

    def look() -> tuple[VisionTower, Path, str, list[str]]:
        """The tower, the file and key of the clusters, and the clusters, if they are kept already."""
        tower = load()
        pictures = [[sample.id, source.digest(sample)] for sample in by_id]
        key = hashlib.sha256(json.dumps([tower.fingerprint, num_clusters, seed, pictures]).encode()).hexdigest()
        path = cache / _key(tower) / f"clusters-{key[:16]}.json"
        return tower, path, key, load_clusters(path, key, len(by_id))

    def fill() -> None:
        """This rank's share of the features goes into the cache."""
        tower = at_server[0] if at_server else load()
        for _ in tables(tower, by_id[team.rank :: team.topology.world_size]):
            pass

    def find() -> list[str]:
        if not at_server:
            return []
        tower, path, key, _ = at_server
        found = cluster(np.concatenate([pool(table) for table in tables(tower, by_id)]), num_clusters, seed)
        save_clusters(path, key, found)
        return found

    at_server = together(team, lambda: look() if is_server(team) else None)
    topics = at_server[3] if at_server else []
    if not team.share(len(topics)):
        if team.topology.world_size > 1:
            together(team, fill)
        topics = together(team, find)
    named = dict(zip((sample.id for sample in by_id), team.share(topics), strict=True))
    return [named[sample.id] for sample in samples]


def _key(tower: VisionTower) -> str:
    return tower.fingerprint[:32]


def pool(table: FeatureTable) -> np.ndarray:
    """The mean over the tokens of each picture, of length 1: ``[n, d]`` float32."""
    means = table[range(len(table))].mean(dim=1)
    return torch.nn.functional.normalize(means, dim=1).numpy()


def cluster(vectors: np.ndarray, num_clusters: int, seed: int) -> list[str]:
    """Cluster names by row, ``cluster 00`` the largest; the same vectors in the same order give the same names.

    Mini-batch k-means (Sculley, WWW 2010), the best of three starts.

    Args:
        vectors: ``[n, d]``.
        num_clusters: at most n.
        seed: the run's seed.

    Raises:
        ConfigError: there are fewer different vectors than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    unique = len(np.unique(vectors, axis=0))
    if unique < num_clusters:
        raise ConfigError(f"partition.topic.clusters={num_clusters}, but only {unique} training pictures differ")
    start = derive(seed, "clusters") % 2**32
    found = MiniBatchKMeans(num_clusters, batch_size=4096, n_init=3, random_state=start).fit_predict(vectors)
    sizes = np.bincount(found, minlength=num_clusters)
    ranks = np.empty(num_clusters, np.int64)
    ranks[np.argsort(-sizes, kind="stable")] = np.arange(num_clusters)
    return [f"cluster {ranks[number]:02}" for number in found]


def load_clusters(path: Path, key: str, count: int) -> list[str]:
    """The clusters of ``count`` samples that were kept under a key; empty where there are none, or corrupted ones."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key or len(content["topics"]) != count:
            raise ValueError("it belongs to other samples")
        return [str(topic) for topic in content["topics"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("clusters %s are not usable (%s); they are computed again", path, error)
        return []


def save_clusters(path: Path, key: str, topics: Sequence[str]) -> None:
    """Keeps clusters, whole or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"key": key, "topics": list(topics)}), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"cannot write the clusters {path} (data.cache_dir): {error}") from error
