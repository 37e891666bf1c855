"""split.json: who holds what, and how alike they are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.config import PartitionConfig
from fedcmp.data.scenarios.overlap import mean_overlap
from fedcmp.data.scenarios.partition import Partition
from fedcmp.data.scenarios.topic import topics_of


def manifest(split: Partition, splits: Mapping[str, Sequence[Sample]], config: PartitionConfig) -> dict[str, Any]:
    """The content of split.json.

    Args:
        split: who holds what.
        splits: samples for ``"train"``, ``"val"`` and ``"test"``.
        config: what was asked for.

    Returns:
        ``seed``, ``hash`` (of ``clients`` alone), ``records`` (``records_hash`` of each of ``splits``), ``clients``
        {"0": [sample ids], ...}, ``names`` (of the clients), ``scenario``, ``knobs`` (those that act), ``sizes`` by
        client, ``corrupted`` {client: [sample ids]}, ``composition`` {client: {"domains": {name: n}, "labels": {name:
        n}}} (with ``"topics"`` where they are clusters), ``overlap`` (mean over pairs of clients, of the topics that
        were assigned, else of domains; 1 alike, 0 disjoint) and ``splits`` (samples of each).
    """
    samples = splits["train"]
    clients = {str(k): sorted(samples[position].id for position in client) for k, client in enumerate(split.clients)}
    names: dict[str, Sequence[str]] = {"domains": [sample.domain for sample in samples], "labels": topics_of(samples)}
    if split.topics and config.topic.by == "cluster":
        names["topics"] = split.topics
    counts = {kind: count(split.clients, of) for kind, of in names.items()}
    assigned = count(split.clients, split.topics) if split.topics else counts["domains"]
    return {
        "seed": split.seed,
        "hash": split_hash(clients),
        "records": {name: records_hash(of) for name, of in splits.items()},
        "scenario": config.scenario,
        "knobs": config.knobs(),
        "splits": {name: len(of) for name, of in splits.items()},
        "names": list(split.names) or list(clients),
        "sizes": [len(client) for client in split.clients],
        "overlap": mean_overlap(as_matrix(assigned)),
        "composition": {
            str(k): {kind: dict(sorted(by_client[k].items())) for kind, by_client in counts.items()}
            for k in range(len(split.clients))
        },
        "corrupted": {
            str(k): sorted(samples[position].id for position in client)
            for k, client in enumerate(split.corrupted)
            if client
        },
        "clients": clients,
    }


def split_hash(clients: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of who holds which sample ids."""
    return hashlib.sha256(json.dumps(clients, sort_keys=True).encode()).hexdigest()


def records_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 of all that records say, in their order: not of their files' places, nor of the pictures' content."""
    digest = hashlib.sha256()
    for place in range(0, len(samples), 1024):  # many at once: half a million in half a second
        rows = [
            (one.id, one.image, one.caption, one.domain, one.label, one.topic, one.captions)
            for one in samples[place : place + 1024]
        ]
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()


def count(clients: Sequence[Sequence[int]], names: Sequence[str]) -> list[Counter[str]]:
    """How often each name stands at each client."""
    return [Counter(names[position] for position in client) for client in clients]


def as_matrix(counts: Sequence[Mapping[str, int]], columns: Sequence[str] | None = None) -> np.ndarray:
    """``[K, T]`` in the order of ``columns``; None: all names, sorted.

    >>> as_matrix([{"b": 2}, {"a": 1, "b": 3}])
    array([[0, 2],
           [1, 3]])
    """
    columns = sorted({name for one in counts for name in one}) if columns is None else columns
    return np.array([[one.get(name, 0) for name in columns] for one in counts])
