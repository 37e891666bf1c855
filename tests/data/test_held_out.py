"""Pictures that are held out: by content, in shares that are known beforehand, and never on two sides."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from fedcmp.data.held_out import MOST, divide, find_overlap, halve, hold_out, subsample
from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, DataError


def hashed(sample: Sample) -> str:
    return hashlib.sha256(sample.image.encode()).hexdigest()


SAMPLES = [
    Sample(f"{domain}{n}", f"{domain}{n if n % 4 else 0}.png", "a x", domain)
    for domain, count in (("a", 40), ("b", 9), ("c", 1), ("d", 2))
    for n in range(count)
]


def test_halves_are_balanced_by_domain_and_keep_equal_pictures_together() -> None:
    val, test = halve(SAMPLES, hashed)
    assert sorted(s.id for s in [*val, *test]) == sorted(s.id for s in SAMPLES)
    for domain in "abcd":
        pictures = [{s.image for s in half if s.domain == domain} for half in (val, test)]
        assert 0 <= len(pictures[0]) - len(pictures[1]) <= 1
    assert [s.id for s in val] == [s.id for s in SAMPLES if s in val], "in their old order"
    assert {s.id for s in halve(SAMPLES[::-1], hashed)[0]} == {s.id for s in val}
    both = halve([Sample(f"{d}{n}", f"{n}.png", "a x", d) for d in "ab" for n in range(8)], hashed)
    for one, other in ((val, test), both):
        assert {s.image for s in one}.isdisjoint(s.image for s in other), "a picture of two domains is on one side"
    assert len(both[0]) == len(both[1]) == 8


def test_only_pictures_that_may_be_equal_are_read() -> None:
    content = {"t1": b"aaaa", "t2": b"bbbb", "t3": b"cc", "h1": b"bbbb", "h2": b"dddddd"}
    t1, t2, t3, h1, h2 = (Sample(name, name, "a x", "d") for name in content)
    read: list[str] = []

    def digest(sample: Sample) -> str:
        read.append(sample.id)
        return hashlib.sha256(content[sample.id]).hexdigest()

    for knows, unread in ((False, {"t3"}), (True, {"t1", "t3"})):  # the checksum
        read.clear()
        marks = {name: (len(one), hash(one) if knows else None) for name, one in content.items()}
        assert find_overlap([t1, t2, t3], [h1, h2], lambda s, marks=marks: marks[s.id], digest) == {"t2": h1}
        assert unread.isdisjoint(read)


def test_what_is_held_out_or_drawn_depends_on_nothing_but_ids() -> None:
    some = subsample(SAMPLES, 5, seed=1)
    assert Counter(s.domain for s in some) == {"a": 5, "b": 5, "c": 1, "d": 2}
    assert some == subsample(SAMPLES, 5, seed=1) != subsample(SAMPLES, 5, seed=2)
    assert {s.id for s in subsample(SAMPLES[::-1], 5, seed=1)} == {s.id for s in some}
    assert subsample(SAMPLES, 0, seed=1) == SAMPLES
    samples = [sample for sample in SAMPLES if sample.domain in "ab"]
    train, held = hold_out(samples, 5)
    assert train == [s for s in samples if s not in held]
    assert Counter(s.domain for s in held) == {"a": 5, "b": 5}
    assert held == [s for s in samples if s in held], "in their old order"
    assert (
        {s.id for s in hold_out(samples[::-1], 5)[1]} == {s.id for s in held} > {s.id for s in hold_out(samples, 3)[1]}
    )
    with pytest.raises(DataError, match=r"data\.held_out_per_domain=9 .*'b'"):
        hold_out(samples, 9)


def marks(num: int) -> list[tuple[int, int]]:
    return [(1000 + number, number * 7919) for number in range(num)]


@pytest.mark.parametrize(("num", "asked", "expected"), [
    (3, (), {"train": 1, "val": 1, "test": 1}),
    (40, (), {"train": 36, "val": 2, "test": 2}),
    (11_000, (), {"train": 11_000 - 2 * MOST, "val": MOST, "test": MOST}),
    (40, (10, None), {"train": 28, "val": 10, "test": 2}),
    (40, (10, 0), {"train": 30, "val": 10}),
])  # fmt: skip
def test_as_many_pictures_as_asked_else_five_per_cent_and_at_most_512(num: int, asked: tuple, expected: dict) -> None:
    assert Counter(divide(marks(num), [None] * num, *asked).sides) == expected
    for val, test in ((0, None), (1, -1), (1, 0), (num - num // 4, num // 4)):
        with pytest.raises(ConfigError, match="--val"):
            divide(marks(num), [None] * num, val, test)


def test_equal_pictures_are_on_one_side_and_order_does_not_matter() -> None:
    twice = marks(200) * 2
    sides = divide(twice, [None] * 400, 30, 20, seed=3).sides
    assert sides[:200] == sides[200:]
    assert Counter(sides) == {"train": 300, "val": 60, "test": 40}
    assert divide(twice[::-1], [None] * 400, 30, 20, seed=3).sides == sides[::-1]
    assert divide(twice, [None] * 400, 30, 20, seed=4).sides != sides
    # a hash decides, not a shuffle: more pictures hardly move the others
    small, large = (dict(zip(marks(n), divide(marks(n), [None] * n, 10, 10).sides, strict=True)) for n in (300, 330))
    assert sum(small[mark] != large[mark] for mark in small) <= 6


def test_groups_are_on_one_side() -> None:
    num = 300
    patients: list[str | None] = [f"p{number % 60}" for number in range(num)]
    for val, test, expected in (  # numbers are reached, and passed by less than a patient's pictures
        (20, 20, {"train": 260, "val": 20, "test": 20}), (11, 1, {"train": 280, "val": 15, "test": 5}),
    ):  # fmt: skip
        sides = divide(marks(num), [None] * num, val, test, groups=patients).sides
        assert len(set(zip(sides, patients, strict=True))) == 60
        assert Counter(sides) == expected
    # patients that share a picture stay together; who has no group is alone
    shared, groups = [*marks(num), marks(num)[0]], [*patients[:200], *[None] * 100, "p1"]
    sides = divide(shared, [None] * (num + 1), 20, 20, groups=groups).sides
    assert len({side for side, one in zip(sides, groups, strict=True) if one in ("p0", "p1")}) == 1
    assert divide(shared[::-1], [None] * 301, 20, 20, groups=groups[::-1]).sides == sides[::-1]
    for twice, those, named in ((marks(10), ["a", "b"] * 5, "2 groups"), (marks(2) * 2, None, "2 different pictures")):
        with pytest.raises(DataError, match=named):
            divide(twice, [None] * len(twice), groups=those)


def test_the_sets_own_splits_are_used_and_twins_left_out() -> None:
    one, two, three, four, five = marks(5)
    pictures = [one, two, three, four, one, two, five, three]
    found = divide(pictures, ["train", "train", None, "val", "test", "val", "train", "train"])
    assert found == ([None, None, "train", "val", "test", "val", "train", "train"], True)
    assert divide([one, one, two, three], ["val", "test", "train", "val"]).sides == [None, "test", "train", "val"]
    assert not divide(marks(5), ["train", "train", "train", "val", "test"], val=1).own, "unless a number is given"
    sides = divide([*marks(60), marks(60)[0]], ["test"] * 20 + ["train"] * 41).sides
    assert sides[:20] == ["test"] * 20
    assert Counter(sides) == {"test": 20, "val": 2, "train": 38, None: 1}, "validation is drawn from training"
    for own in (["val", "val", "test"], ["train", "test", "test"]):
        with pytest.raises(DataError, match="own splits"):
            divide(marks(3), own)
