"""Who is held out: by content, in shares that can be told beforehand."""

from __future__ import annotations

from collections import Counter

import pytest

from fedcmp.data.splits import MOST, divide
from fedcmp.errors import ConfigError, DataError


def marks(num: int) -> list[tuple[int, int]]:
    return [(1000 + number, number * 7919) for number in range(num)]


@pytest.mark.parametrize(("num", "held"), [(3, 1), (19, 1), (40, 2), (1000, 50), (20_480, MOST)])
def test_five_per_cent_but_at_most_512(num: int, held: int) -> None:
    sides = divide(marks(num), [None] * num)
    assert not sides.own
    assert Counter(sides.sides) == {"train": num - 2 * held, "val": held, "test": held}


def test_numbers_that_are_asked_for() -> None:
    assert Counter(divide(marks(40), [None] * 40, 10, 5).sides) == {"train": 25, "val": 10, "test": 5}
    assert Counter(divide(marks(40), [None] * 40, 10).sides) == {"train": 28, "val": 10, "test": 2}
    assert Counter(divide(marks(40), [None] * 40, 10, 0).sides) == {"train": 30, "val": 10}
    for val, test, complaint in (
        (0, None, "--val must be 1 or more, got 0"),
        (1, -1, "--test must be 0 or more, got -1"),
        (1, 0, "--val must be at least 2 where --test is 0"),
        (30, 10, "--val 30 and --test 10 leave nothing to train on: the set has 40 different pictures"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            divide(marks(40), [None] * 40, val, test)
    with pytest.raises(DataError, match=r"2 different pictures are too few"):
        divide([*marks(2), *marks(2)], [None] * 4)


def test_equal_pictures_stand_on_one_side_and_order_does_not_matter() -> None:
    twice = marks(200) * 2
    sides = divide(twice, [None] * 400, 30, 20, seed=3).sides
    assert sides[:200] == sides[200:]
    assert Counter(sides) == {"train": 300, "val": 60, "test": 40}
    assert divide(twice[::-1], [None] * 400, 30, 20, seed=3).sides == sides[::-1]
    assert divide(twice, [None] * 400, 30, 20, seed=4).sides != sides


def test_more_pictures_hardly_move_the_others() -> None:
    """A hash decides, not a shuffle: who is tested on with fewer pictures is held out with more, if more are."""
    small = dict(zip(marks(300), divide(marks(300), [None] * 300, 10, 10).sides, strict=True))
    large = dict(zip(marks(330), divide(marks(330), [None] * 330, 10, 10).sides, strict=True))
    assert sum(small[mark] != large[mark] for mark in small) <= 6


def test_groups_are_not_torn_apart() -> None:
    num = 300
    patients: list[str | None] = [f"p{number % 60}" for number in range(num)]
    sides = divide(marks(num), [None] * num, 20, 20, groups=patients).sides
    of = {patient: {side for side, one in zip(sides, patients, strict=True) if one == patient} for patient in patients}
    assert all(len(found) == 1 for found in of.values())
    assert Counter(sides) == {"train": 260, "val": 20, "test": 20}
    # the number is reached, and passed by less than a patient's pictures
    assert Counter(divide(marks(num), [None] * num, 11, 1, groups=patients).sides) == {
        "train": 280,
        "val": 15,
        "test": 5,
    }
    # patients that share a picture stay together; who has no group stands alone
    shared = [*marks(num), marks(num)[0]]
    sides = divide(shared, [None] * (num + 1), 20, 20, groups=[*patients[:200], *[None] * 100, "p1"]).sides
    assert len({side for side, one in zip(sides[:200], patients, strict=False) if one in ("p0", "p1")}) == 1
    assert 18 <= Counter(sides)["test"] <= 30
    assert (
        divide(shared[::-1], [None] * 301, 20, 20, groups=["p1", *[None] * 100, *patients[:200][::-1]]).sides
        == (sides[::-1])
    )
    with pytest.raises(
        DataError, match=r"2 groups that must not be torn apart leave nothing to train on or to validate"
    ):
        divide(marks(10), [None] * 10, groups=["a"] * 5 + ["b"] * 5)


def test_the_sets_own_splits_are_used_and_twins_left_out() -> None:
    one, two, three, four, five = marks(5)
    found = divide(
        [one, two, three, four, one, two, five, three],
        ["train", "train", None, "val", "test", "val", "train", "train"],
    )
    assert found.own
    assert found.sides == [None, None, "train", "val", "test", "val", "train", "train"]
    # a validation picture that is tested on is left out of validation
    assert divide([one, one, two, three], ["val", "test", "train", "val"]).sides == [None, "test", "train", "val"]
    # unless told otherwise
    assert not divide(marks(5), ["train", "train", "train", "val", "test"], val=1).own


def test_missing_validation_is_drawn_from_training() -> None:
    num = 60
    given = ["test" if number < 20 else "train" for number in range(num)]
    sides = divide([*marks(num), marks(num)[0]], [*given, "train"]).sides
    assert sides[:20] == ["test"] * 20
    assert sides[-1] is None
    assert Counter(sides) == {"test": 20, "val": 2, "train": 38, None: 1}
    assert Counter(divide(marks(4), ["train", "train", "train", "val"]).sides) == {"train": 3, "val": 1}
    with pytest.raises(DataError, match=r"hold no picture to train on; give its training files too, or --val N"):
        divide(marks(3), ["val", "val", "test"])
    with pytest.raises(DataError, match=r"1 training picture is too few"):
        divide(marks(3), ["train", "test", "test"])
