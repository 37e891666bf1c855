"""Which samples are used for what: halves for validation and test, none of their pictures in training, and how many."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from fedcmp.data.records import Sample
from fedcmp.errors import DataError
from fedcmp.seeding import numpy_rng

Digest = Callable[[Sample], str]
"""The hash of a sample's picture."""
Mark = Callable[[Sample], tuple[int, int | None]]
"""What can be told of a sample's picture unread: its size in bytes, and a checksum of them where there is one."""


def hold_out(samples: Sequence[Sample], per_domain: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and, of each domain, ``per_domain`` that are not: those whose ids have the lowest hashes.

    A conversation is held out whole, so that there may be some more. No seed and no other sample of the domain decides
    about a sample that is held out.

    Raises:
        DataError: a domain has no sample left to train on.
    """
    members: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for position, sample in enumerate(samples):
        members[sample.domain].append((hashlib.sha256((sample.group or sample.id).encode()).digest(), position))
    chosen: set[int] = set()
    for domain, ranked in members.items():
        last, _ = heapq.nsmallest(per_domain, ranked)[-1]
        drawn = [position for rank, position in ranked if rank <= last]
        if len(drawn) == len(ranked):
            raise DataError(
                f"domain {domain!r} has {len(ranked):,} samples, and data.held_out_per_domain={per_domain:,} are to be "
                "held out: lower it, or give data.val"
            )
        chosen.update(drawn)
    train = [sample for position, sample in enumerate(samples) if position not in chosen]
    return train, [samples[position] for position in sorted(chosen)]


def halve(samples: Sequence[Sample], digest: Digest) -> tuple[list[Sample], list[Sample]]:
    """Validation and test samples: the unique pictures of each domain, ordered by their hash, go to them in turn.

    So both have the same mixture of domains, equal pictures stand on one side, and no seed changes the sides.
    """
    pictures: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        pictures[sample.domain].add(digest(sample))
    second: dict[str, bool] = {}
    for domain in sorted(pictures):
        fresh = sorted(pictures[domain] - second.keys())
        second.update({picture: bool(place % 2) for place, picture in enumerate(fresh)})
    halves: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in samples:
        halves[second[digest(sample)]].append(sample)
    return halves


def find_overlap(train: Iterable[Sample], held_out: Sequence[Sample], mark: Mark, digest: Digest) -> dict[str, Sample]:
    """Training samples whose picture is also held out: training id to one of the held-out samples with that picture.

    Only pictures that have the size and checksum of a held-out one are read.
    """
    checksums: dict[int, set[int | None]] = defaultdict(set)
    for sample in held_out:
        size, checksum = mark(sample)
        checksums[size].add(checksum)

    def may_be(sample: Sample) -> bool:
        size, checksum = mark(sample)
        known = checksums.get(size, set())
        return bool(known) and (checksum is None or None in known or checksum in known)

    suspects = [sample for sample in train if may_be(sample)]
    if not suspects:
        return {}
    pictures = {digest(sample): sample for sample in held_out}
    return {sample.id: pictures[digest(sample)] for sample in suspects if digest(sample) in pictures}


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
