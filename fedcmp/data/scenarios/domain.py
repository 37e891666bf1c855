"""Clients differ by domain: each has one or a share of one; if they are fewer than domains, each has several."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.quantity import sizes_from
from fedcmp.errors import ConfigError, DataError, nearest


def find_owners(samples: Sequence[Sample], clients: Any) -> list[str]:
    """The owner of each sample: the client that its record names or that a map gives its domain to, else its domain.

    Raises:
        ConfigError: a map names a domain that the data lack, or lacks one.
        DataError: a record names no client.
    """
    if clients == "given":
        for sample in samples:
            if sample.client is None:
                raise DataError(f"partition.clients=given: {sample.origin}: the record has no field `client`")
        return [str(sample.client) for sample in samples]
    if not isinstance(clients, Mapping):
        return [sample.domain for sample in samples]
    owners = {domain: name for name, domains in clients.items() for domain in domains}
    present = {sample.domain for sample in samples}
    for domain in sorted(owners.keys() ^ present):
        if domain in owners:
            raise ConfigError(f"partition.clients: no domain {domain!r} in the data; {nearest(domain, present)}")
        raise ConfigError(f"partition.clients gives {domain!r} to no client; data.domains chooses the domains to use")
    return [owners[sample.domain] for sample in samples]


def name_clients(owners: Sequence[str], num_clients: int) -> tuple[str, ...]:
    """The name of each client: its owner where ``partition_domains`` gives it one whole owner, else its number.

    >>> name_clients(["b", "a", "c"], 2)
    ('0', 'b')
    """
    names, clients = sorted(set(owners)), range(num_clients)
    few, many = sorted((len(names), num_clients))
    return tuple(names[one] if one < few and one + few >= many else str(one) for one in clients)


def partition_domains(
    domains: Sequence[str], num_clients: int, shares: np.ndarray | None = None, least: int = 1
) -> list[list[int]]:
    """Whole domains to clients in turn; with more clients than domains, a domain is shared by several.

    Args:
        domains: the domain of each sample, in random order.
        num_clients: K.
        shares: how much each client should have, ``[K]``: owners of one domain split it by them, and the only owner
            of a domain keeps the part share / max(share) of it, the rest being left out. None: each has all it can.
        least: the floor of a client's samples, if there are shares.

    Returns:
        Places 0 .. n-1 by client.

    Raises:
        DataError: a domain is too small for its clients, or for the floor.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, domain in enumerate(domains):
        members[domain].append(place)
    names = sorted(members)
    clients: list[list[int]] = [[] for _ in range(num_clients)]
    alone: dict[int, list[list[int]]] = defaultdict(list)
    for number, name in enumerate(names):
        own = members[name]
        owners = list(range(number, num_clients, len(names))) or [number % num_clients]
        if shares is None:
            if len(own) < len(owners):
                raise DataError(f"partition.clients: domain {name!r} has {len(own)} samples for {len(owners)} clients")
            for turn, place in enumerate(own):
                clients[owners[turn % len(owners)]].append(place)
        elif len(owners) == 1:
            alone[owners[0]].append(own)
        else:
            sizes = sizes_from(len(own), shares[owners], least, f"domain {name}")
            for owner, end, size in zip(owners, np.cumsum(sizes), sizes, strict=True):
                clients[owner] += own[end - size : end]
    for client, parts in alone.items():
        assert shares is not None, "without shares nothing is left out"
        held = sum(map(len, parts))
        if held < least:
            raise DataError(f"partition.quantity.min_samples={least}: the domains of client {client} have {held}")
        kept = max(shares[client] / shares.max(), least / held)
        clients[client] = [place for own in parts for place in own[: math.ceil(kept * len(own) - 1e-9)]]
    return clients


def mix_clients(clients: Sequence[Sequence[int]], share: float, rng: np.random.Generator) -> list[list[int]]:
    """Each client gives ``share`` of its samples into a common heap and draws as many from it."""
    given = [round(share * len(client)) for client in clients]
    heap = [place for client, count in zip(clients, given, strict=True) for place in client[:count]]
    heap = [heap[place] for place in rng.permutation(len(heap))]
    mixed = []
    for client, count in zip(clients, given, strict=True):
        mixed.append([*client[count:], *heap[:count]])
        heap = heap[count:]
    return mixed
