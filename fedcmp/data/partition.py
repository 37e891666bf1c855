"""Records to clients: a pure function of records, settings and seed, written down as a manifest."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedcmp.data.config import PartitionConfig
from fedcmp.data.records import Sample
from fedcmp.errors import DataError
from fedcmp.seeding import numpy_rng


class Partition(NamedTuple):
    """Which samples each client holds."""

    clients: tuple[tuple[int, ...], ...]
    """Positions in the list of samples, by client; disjoint."""
    seed: int


def partition(samples: Sequence[Sample], config: PartitionConfig, seed: int) -> Partition:
    """Deals the samples to ``config.clients`` clients; the order of the samples does not matter.

    Raises:
        DataError: there are fewer samples than clients.
    """
    if len(samples) < config.clients:
        raise DataError(f"{len(samples)} samples cannot be dealt to partition.clients={config.clients} clients")
    by_id = sorted(range(len(samples)), key=lambda position: samples[position].id)
    rng = numpy_rng(seed, "partition")
    shuffled = [by_id[place] for place in rng.permutation(len(by_id))]
    if config.scenario == "iid":
        clients = [shuffled[client :: config.clients] for client in range(config.clients)]
    else:
        clients = _by_domain(samples, shuffled, config.clients)
        if config.mix:
            clients = _mix(clients, config.mix, rng)
    return Partition(tuple(tuple(sorted(client)) for client in clients), seed)


def _by_domain(samples: Sequence[Sample], order: Sequence[int], num_clients: int) -> list[list[int]]:
    """Whole domains to clients in turn; with more clients than domains, a domain is shared by several."""
    members: dict[str, list[int]] = defaultdict(list)
    for position in order:
        members[samples[position].domain].append(position)
    domains = sorted(members)
    clients: list[list[int]] = [[] for _ in range(num_clients)]
    for number, domain in enumerate(domains):
        owners = range(number, num_clients, len(domains)) or [number % num_clients]
        for place, position in enumerate(members[domain]):
            clients[owners[place % len(owners)]].append(position)
    return clients


def _mix(clients: Sequence[Sequence[int]], share: float, rng: Any) -> list[list[int]]:
    """Each client gives ``share`` of its samples into a common heap and draws as many from it."""
    given = [round(share * len(client)) for client in clients]
    heap = [position for client, count in zip(clients, given, strict=True) for position in client[:count]]
    heap = [heap[place] for place in rng.permutation(len(heap))]
    mixed = []
    for client, count in zip(clients, given, strict=True):
        mixed.append([*client[count:], *heap[:count]])
        heap = heap[count:]
    return mixed


def subsample(samples: Sequence[Sample], per_domain: int, seed: int) -> list[Sample]:
    """At most ``per_domain`` random samples of each domain (0: all), in their old order."""
    if per_domain == 0:
        return list(samples)
    members: dict[str, list[int]] = defaultdict(list)
    for position in sorted(range(len(samples)), key=lambda place: samples[place].id):
        members[samples[position].domain].append(position)
    keep: set[int] = set()
    for domain, positions in members.items():
        order = numpy_rng(seed, "subsample", domain).permutation(len(positions))
        keep.update(positions[place] for place in order[:per_domain])
    return [sample for position, sample in enumerate(samples) if position in keep]


def manifest(split: Partition, samples: Sequence[Sample]) -> dict[str, Any]:
    """split.json: ``{"seed", "hash", "clients": {"0": [sample ids], ...}}``."""
    clients = {str(k): sorted(samples[position].id for position in client) for k, client in enumerate(split.clients)}
    digest = hashlib.sha256(json.dumps(clients, sort_keys=True).encode()).hexdigest()
    return {"seed": split.seed, "hash": digest, "clients": clients}
