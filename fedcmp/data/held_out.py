"""Which pictures are held out, of a run's samples and of a new set: equal pictures are always on one side."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, DataError
from fedcmp.seeding import derive, numpy_rng

Digest = Callable[[Sample], str]
"""The hash of a sample's picture."""
Mark = tuple[int, int]
"""Size in bytes and CRC-32 of a picture: equal for equal pictures, and for others hardly ever."""
SIDES = ("train", "val", "test")
MOST = 512
"""Pictures of a new set that are held out for validation, and for the test, by default."""


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
            raise DataError(f"data.held_out_per_domain={per_domain:,} leaves nothing of domain {domain!r} to train on")
        chosen.update(drawn)
    train = [sample for position, sample in enumerate(samples) if position not in chosen]
    return train, [samples[position] for position in sorted(chosen)]


def halve(samples: Sequence[Sample], digest: Digest) -> tuple[list[Sample], list[Sample]]:
    """Validation and test samples: the unique pictures of each domain, ordered by their hash, go to them in turn.

    So both have the same mixture of domains, equal pictures are on one side, and no seed changes the sides.
    """
    pictures: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        pictures[sample.domain].add(digest(sample))
    half: dict[str, int] = {}
    for domain in sorted(pictures):
        half |= {picture: place % 2 for place, picture in enumerate(sorted(pictures[domain] - half.keys()))}
    first, second = ([sample for sample in samples if half[digest(sample)] == side] for side in (0, 1))
    return first, second


def find_overlap(
    train: Iterable[Sample],
    held_out: Sequence[Sample],
    mark: Callable[[Sample], tuple[int, int | None]],
    digest: Digest,
) -> dict[str, Sample]:
    """Training samples whose picture is also held out: training id to one of the held-out samples with that picture.

    Args:
        mark: size and, where it is known, checksum of a picture that is not read. Only those that agree are read.
    """
    checksums: dict[int, set[int | None]] = defaultdict(set)
    for sample in held_out:
        size, checksum = mark(sample)
        checksums[size].add(checksum)
    suspects = []
    for sample in train:
        size, checksum = mark(sample)
        known = checksums.get(size, set())
        if known and (checksum is None or known & {None, checksum}):
            suspects.append(sample)
    pictures = {digest(sample): sample for sample in held_out} if suspects else {}
    return {sample.id: pictures[digest(sample)] for sample in suspects if digest(sample) in pictures}


def subsample(samples: Sequence[Sample], per_domain: int, seed: int) -> list[Sample]:
    """At most ``per_domain`` random samples of each domain (0: all), in their old order."""
    if per_domain == 0:
        return list(samples)
    members: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        members[sample.domain].append(sample.id)
    keep: set[str] = set()
    for domain, ids in members.items():
        order = numpy_rng(seed, "subsample", domain).permutation(len(ids))[:per_domain]
        keep.update(np.array(sorted(ids), object)[order])
    return [sample for sample in samples if sample.id in keep]


class Sides(NamedTuple):
    """Where each sample of a new set goes."""

    sides: list[str | None]
    """``"train"``, ``"val"``, ``"test"``, or None: left out, because its picture is held out."""
    own: bool
    """Whether the set's own splits were used."""


def divide(
    marks: Sequence[Mark],
    given: Sequence[str | None],
    val: int | None = None,
    test: int | None = None,
    seed: int = 0,
    groups: Sequence[str | None] | None = None,
) -> Sides:
    """Validation, test and training samples of a new set.

    Without ``val`` and ``test`` the set's own splits are used where it has a held-out one: a training sample whose
    picture is held out is left out, and so is a validation sample whose picture is tested on; where validation pictures
    are missing, some are drawn from the training ones. Else unique pictures, ordered by a hash of size, CRC-32 and
    seed, go to test, validation and training.

    Args:
        marks: of each sample's picture.
        given: the split that the set names for each sample; None: none.
        val: unique pictures for validation, >= 1; None: 512, but at most 5 %.
        test: the same for the test; 0: none, half of validation is then the test set wherever the data are used.
        groups: of each sample, what is not split where pictures are drawn, a patient for example; None: nothing. The
            numbers are then reached, or passed by less than a group.

    Raises:
        ConfigError: ``val`` or ``test`` is out of range.
        DataError: too few pictures, or groups, to hold any out.
    """
    if val is None and test is None and {"val", "test"} & set(given):
        return _own(marks, given, seed)
    unique = _ordered(marks, seed)
    if len(unique) < 3:
        raise DataError(f"{len(unique)} different pictures are too few for training, validation and test")
    val, test = (_default(unique) if asked is None else asked for asked in (val, test))
    if test < 0 or val < (1 if test else 2):
        raise ConfigError(f"--val must be at least 1, or 2 where --test is 0, and --test 0 or more, got {val}, {test}")
    if val + test >= len(unique):
        raise ConfigError(f"--val {val} and --test {test} leave none of {len(unique):,} different pictures to train on")
    units = _units(marks, groups or [None] * len(marks))
    sizes = Counter(units.values())
    side: dict[Mark, str] = {}
    filled = Counter[str]()
    for unit in (mark for mark in unique if units[mark] == mark):
        side[unit] = next((name for name, most in (("test", test), ("val", val)) if filled[name] < most), "train")
        filled[side[unit]] += sizes[unit]
    if not filled["train"] or not filled["val"]:
        raise DataError(f"{len(sizes)} groups are too few for --val {val} and --test {test}")
    return Sides([side[units[mark]] for mark in marks], False)


def _units(marks: Sequence[Mark], groups: Sequence[str | None]) -> dict[Mark, Mark]:
    """Each picture -> the least of those that must stay with it: its group's, and those of groups that share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[Mark | str, int] = {}
    rows = [nodes.setdefault(mark, len(nodes)) for mark in marks]
    columns = [
        row if group is None else nodes.setdefault(group, len(nodes)) for row, group in zip(rows, groups, strict=True)
    ]
    _, part = connected_components(coo_array(([1] * len(rows), (rows, columns)), (len(nodes), len(nodes))), False)
    least: dict[int, Mark] = {}
    for mark in sorted(set(marks)):
        least.setdefault(int(part[nodes[mark]]), mark)
    return {mark: least[int(part[nodes[mark]])] for mark in set(marks)}


def _own(marks: Sequence[Mark], given: Sequence[str | None], seed: int) -> Sides:
    best: dict[Mark, str] = {}
    for mark, split in zip(marks, given, strict=True):
        side = split or "train"
        best[mark] = max(best.get(mark, side), side, key=SIDES.index)
    trained = [mark for mark, side in best.items() if side == "train"]
    if len(trained) < (1 if "val" in best.values() else 2):
        raise DataError(f"the set's own splits leave {len(trained)} pictures to train on; give more files, or --val N")
    if "val" not in best.values():
        drawn = set(_ordered(trained, seed)[: _default(trained)])
        best.update(dict.fromkeys(drawn, "val"))
        given = ["val" if mark in drawn else split for mark, split in zip(marks, given, strict=True)]
    sides = [split or "train" for split in given]
    return Sides([side if side == best[mark] else None for mark, side in zip(marks, sides, strict=True)], True)


def _ordered(marks: Sequence[Mark], seed: int) -> list[Mark]:
    """The unique ones, in an order that a seed decides."""
    return sorted(set(marks), key=lambda mark: (derive(seed, "split", *mark), mark))


def _default(unique: Sequence[Mark]) -> int:
    return max(1, min(MOST, len(unique) // 20))
