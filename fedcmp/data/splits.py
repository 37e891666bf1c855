"""Which pictures of a new set are held out: equal pictures stand on one side, the rest is drawn by a hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fedcmp.data.layouts.pictures import Mark
from fedcmp.errors import ConfigError, DataError
from fedcmp.seeding import derive

SIDES = ("train", "val", "test")
MOST = 512
"""Pictures held out for validation, and for the test, where nothing else is asked for."""


class Sides(NamedTuple):
    """Where each sample goes."""

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
    """Validation, test and training samples.

    Without ``val`` and ``test`` the set's own splits are used where it has a held-out one: a training sample whose
    picture is held out is left out, and so is a validation sample whose picture is tested on; where validation pictures
    are missing, some are drawn from the training ones. Else unique pictures, ordered by a hash of size, CRC-32 and
    seed, go to test, validation and training.

    Args:
        marks: of each sample's picture.
        given: the split that the set names for each sample; None: none.
        val: unique pictures for validation, >= 1; None: 512, but at most 5 %.
        test: the same for the test; 0: none, half of validation is then the test set wherever the data are used.
        groups: of each sample, what must not be torn apart where pictures are drawn, a patient for example; None:
            nothing. The numbers are then reached, or passed by less than a group.

    Raises:
        ConfigError: ``val`` or ``test`` is out of range.
        DataError: too few pictures, or groups, to hold any out.
    """
    if val is None and test is None and {"val", "test"} & set(given):
        return _own(marks, given, seed)
    unique = _ordered(marks, seed)
    if len(unique) < 3:
        raise DataError(f"{len(unique)} different pictures are too few for training, validation and test")
    val, test = _number("val", val, unique, 1), _number("test", test, unique, 0)
    if test == 0 and val < 2:
        raise ConfigError("--val must be at least 2 where --test is 0: half of the pictures are the test set")
    if val + test >= len(unique):
        raise ConfigError(
            f"--val {val} and --test {test} leave nothing to train on: the set has {len(unique):,} different pictures"
        )
    units = _units(marks, groups or [None] * len(marks))
    sizes = Counter(units.values())
    side: dict[Mark, str] = {}
    filled = Counter[str]()
    for unit in (mark for mark in unique if units[mark] == mark):
        side[unit] = next((name for name, most in (("test", test), ("val", val)) if filled[name] < most), "train")
        filled[side[unit]] += sizes[unit]
    if not filled["train"] or not filled["val"]:
        raise DataError(
            f"{len(sizes)} groups that must not be torn apart leave nothing to train on or to validate with, for --val "
            f"{val} and --test {test}"
        )
    return Sides([side[units[mark]] for mark in marks], False)


def _units(marks: Sequence[Mark], groups: Sequence[str | None]) -> dict[Mark, Mark]:
    """Each picture -> the least of those that must stay with it: its group's, and those of groups that share one."""
    head: dict[Mark, Mark] = {}

    def find(mark: Mark) -> Mark:
        head.setdefault(mark, mark)
        while head[mark] != mark:
            head[mark] = head[head[mark]]  # shortens the way for the next
            mark = head[mark]
        return mark

    first: dict[str, Mark] = {}
    for mark, group in zip(marks, groups, strict=True):
        least, other = sorted((find(mark), find(mark if group is None else first.setdefault(group, mark))))
        head[other] = least
    return {mark: find(mark) for mark in head}


def _own(marks: Sequence[Mark], given: Sequence[str | None], seed: int) -> Sides:
    best: dict[Mark, str] = {}
    for mark, split in zip(marks, given, strict=True):
        side = split or "train"
        best[mark] = max(best.get(mark, side), side, key=SIDES.index)
    counts = Counter(best.values())
    if not counts["train"]:
        raise DataError(
            "the set's own splits hold no picture to train on; give its training files too, or --val N to split anew"
        )
    if not counts["val"]:
        trained = _ordered([mark for mark, side in best.items() if side == "train"], seed)
        if len(trained) < 2:
            raise DataError("1 training picture is too few to hold any out for validation")
        drawn = set(trained[: _number("val", None, trained, 1)])
        best.update(dict.fromkeys(drawn, "val"))
        given = ["val" if mark in drawn else split for mark, split in zip(marks, given, strict=True)]
    sides = [
        side if (side := split or "train") == best[mark] else None for mark, split in zip(marks, given, strict=True)
    ]
    return Sides(sides, True)


def _ordered(marks: Sequence[Mark], seed: int) -> list[Mark]:
    """The unique ones, in an order that a seed decides."""
    return sorted(set(marks), key=lambda mark: (derive(seed, "split", *mark), mark))


def _number(name: str, asked: int | None, unique: Sequence[Mark], least: int) -> int:
    if asked is None:
        return max(1, min(MOST, len(unique) // 20))
    if asked < least:
        raise ConfigError(f"--{name} must be {least} or more, got {asked}")
    return asked
