"""Records to clients: a pure function of records, settings and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.config import NUM_CLIENTS, PartitionConfig, check_names, parse_scenario
from fedcmp.data.scenarios.domain import find_owners, mix_clients, name_clients, partition_domains
from fedcmp.data.scenarios.quantity import client_shares, even_sizes, sizes_from
from fedcmp.data.scenarios.topic import partition_topics, topics_of
from fedcmp.errors import ConfigError, DataError
from fedcmp.seeding import numpy_rng


class Partition(NamedTuple):
    """Which samples each client holds."""

    clients: tuple[tuple[int, ...], ...]
    """Positions in the list of samples, by client; disjoint."""
    seed: int
    topics: tuple[str, ...] = ()
    """The topic of each sample; empty where samples were not assigned by topic."""
    corrupted: tuple[tuple[int, ...], ...] = ()
    """Positions of samples whose caption is not their own, by client; empty where none is."""
    names: tuple[str, ...] = ()
    """What each client is called; empty: by its number."""


def partition(
    samples: Sequence[Sample], config: PartitionConfig, seed: int, topics: Sequence[str] | None = None
) -> Partition:
    """Deals the samples to clients as ``config.clients`` says; the order of the samples does not matter.

    Every sample has one owner, except where a client that owns a domain alone keeps only its share of it
    (``domain+quantity``).

    Args:
        samples: the training samples.
        config: the scenario and its knobs.
        seed: the run's seed.
        topics: the topic of each sample, for ``topic``; None: as their labels or domains say.

    Raises:
        ConfigError: clients and domains do not fit, or a client cannot be called as it would be.
        DataError: there are fewer samples than clients, or fewer than the floor of their sizes needs; or no client is
            given.
    """
    scenario = parse_scenario(config.scenario)
    owners = find_owners(samples, config.clients) if scenario.split_by == "domain" else []
    num_clients = config.clients if isinstance(config.clients, int) else len(set(owners)) or NUM_CLIENTS
    if scenario.quality and config.quality.kind == "foreign" and num_clients == 1:
        raise ConfigError("partition.quality.kind=foreign needs captions of others, and there is 1 client")
    if len(samples) < num_clients:
        raise DataError(f"{len(samples)} samples cannot be assigned to partition.clients={num_clients} clients")
    by_id = sorted(range(len(samples)), key=lambda position: samples[position].id)
    rng = numpy_rng(seed, "partition")
    order = [by_id[place] for place in rng.permutation(len(by_id))]
    shares = client_shares(num_clients, config.quantity, seed) if scenario.quantity else None
    least = config.quantity.min_samples
    if scenario.split_by == "domain":
        clients = partition_domains([owners[position] for position in order], num_clients, shares, least)
        exchanged = config.mix and isinstance(config.clients, int | None)  # then no client is one domain
        names = () if exchanged else name_clients(owners, num_clients)
        check_names(names, "partition.clients")
        if config.mix:
            clients = mix_clients(clients, config.mix, rng)
        return _partition(clients, order, seed)._replace(names=names)
    sizes = even_sizes(len(order), num_clients) if shares is None else sizes_from(len(order), shares, least)
    if scenario.split_by == "topic":
        if topics is None and config.topic.by == "cluster":
            raise ValueError("clusters are found before samples are assigned by them")
        named = tuple(topics_of(samples, config.topic.by) if topics is None else topics)
        clients = partition_topics([named[position] for position in order], sizes, config.topic.alpha, rng)
        return _partition(clients, order, seed)._replace(topics=named)
    if shares is None:
        return _partition([range(client, len(order), num_clients) for client in range(num_clients)], order, seed)
    return _partition([part.tolist() for part in np.split(np.arange(len(order)), np.cumsum(sizes)[:-1])], order, seed)


def _partition(clients: Sequence[Sequence[int]], order: Sequence[int], seed: int) -> Partition:
    """From places in the random order to positions in the list of samples."""
    return Partition(tuple(tuple(sorted(order[place] for place in client)) for client in clients), seed)
