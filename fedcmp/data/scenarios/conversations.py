"""Samples of one conversation belong to one client."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.config import PartitionConfig
from fedcmp.data.scenarios.partition import Partition, partition


def partition_conversations(
    samples: Sequence[Sample], config: PartitionConfig, seed: int, topics: Sequence[str] | None = None
) -> Partition:
    """As ``partition``, of conversations, each with all its samples; a sample without a group is one of its own."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        members[sample.group or sample.id].append(position)
    whole = list(members.values())
    heads = [positions[0] for positions in whole]
    found = partition([samples[head] for head in heads], config, seed, topics and [topics[head] for head in heads])
    clients = (tuple(sorted(position for place in client for position in whole[place])) for client in found.clients)
    named = {position: topic for place, topic in enumerate(found.topics) for position in whole[place]}
    return found._replace(clients=tuple(clients), topics=tuple(named[position] for position in sorted(named)))
