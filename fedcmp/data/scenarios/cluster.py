"""Topics that nobody named: k-means over what the frozen tower sees, kept in the feature cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedcmp.data.features import FeatureTable
from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, DataError
from fedcmp.seeding import derive

log = logging.getLogger(__name__)


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


def clusters_key(tower: str, digests: Sequence[str], samples: Sequence[Sample], num_clusters: int, seed: int) -> str:
    """The hash of all that clusters depend on.

    Args:
        tower: hash of its weights and preprocessing.
        digests: hashes of the pictures, in the order of the samples.
        samples: sorted by id.
        num_clusters, seed: as for ``cluster``.
    """
    pictures = [[sample.id, digest] for sample, digest in zip(samples, digests, strict=True)]
    return hashlib.sha256(json.dumps([tower, num_clusters, seed, pictures]).encode()).hexdigest()


def load_clusters(folder: Path, key: str, count: int) -> list[str] | None:
    """The clusters of ``count`` samples that were kept under a key; None where there are none or they are corrupted."""
    path = _path(folder, key)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key or len(content["topics"]) != count:
            raise ValueError("it belongs to other samples")
        return [str(topic) for topic in content["topics"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("clusters %s are not usable (%s); they are computed again", path, error)
        return None


def save_clusters(folder: Path, key: str, topics: Sequence[str]) -> None:
    """Keeps clusters, whole or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    path = _path(folder, key)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"key": key, "topics": list(topics)}), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"cannot write the clusters {path} (data.cache_dir): {error}") from error


def _path(folder: Path, key: str) -> Path:
    return folder / f"clusters-{key[:16]}.json"
