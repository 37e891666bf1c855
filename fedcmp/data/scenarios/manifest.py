"""split.json: the samples of each client, and how alike the clients are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.partition import Partition, PartitionConfig
from fedcmp.data.scenarios.topic import topics_of


def manifest(split: Partition, splits: Mapping[str, Sequence[Sample]], config: PartitionConfig) -> dict[str, Any]:
    """The content of split.json.

    Args:
        split: the samples of each client.
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
    """SHA-256 of the sample ids of each client."""
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
    """How often each client has each name."""
    return [Counter(names[position] for position in client) for client in clients]


def as_matrix(counts: Sequence[Mapping[str, int]], columns: Sequence[str] | None = None) -> np.ndarray:
    """``[K, T]`` in the order of ``columns``; None: all names, sorted.

    >>> as_matrix([{"b": 2}, {"a": 1, "b": 3}])
    array([[0, 2],
           [1, 3]])
    """
    columns = sorted({name for one in counts for name in one}) if columns is None else columns
    return np.array([[one.get(name, 0) for name in columns] for one in counts])


def overlap_matrix(counts: np.ndarray) -> np.ndarray:
    """1 - JS(p_k, p_l) for every two clients, ``[K, K]`` in [0, 1]: 1 the same mixture, 0 nothing in common.

    JS is the Jensen-Shannon divergence in bits (Lin, IEEE Trans. Inf. Theory 37(1), 1991).

    Args:
        counts: samples of each kind at each client, ``[K, T]``; no client is empty.

    >>> overlap_matrix(np.array([[2, 0], [0, 5], [1, 1]])).round(3)
    array([[1.   , 0.   , 0.689],
           [0.   , 1.   , 0.689],
           [0.689, 0.689, 1.   ]])
    """
    if not counts.sum(axis=1).all():
        raise ValueError("a client without samples has no mixture")
    shares = counts / counts.sum(axis=1, keepdims=True)
    own = _entropy(shares)
    rows = [1 - (_entropy((share + shares) / 2) - (one + own) / 2) for share, one in zip(shares, own, strict=True)]
    return np.clip(np.stack(rows), 0, 1)


def mean_overlap(counts: np.ndarray) -> float:
    """The mean over all pairs of clients; 1 where there is one client.

    >>> mean_overlap(np.array([[3, 1], [6, 2]]))
    1.0
    """
    if len(counts) == 1:
        return 1.0
    return float(overlap_matrix(counts)[np.triu_indices(len(counts), 1)].mean())


def _entropy(shares: np.ndarray) -> np.ndarray:
    """In bits, over the last axis."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=-1)
