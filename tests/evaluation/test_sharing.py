"""Which samples stand for the others."""

from __future__ import annotations

from collections import Counter

from fedcmp.evaluation.sharing import mixed, spread

NAMES = [f"doodles-{number:05d}" for number in range(300)]
LABELS = [label for label in ("cat", "rainbow", "train") for _ in range(100)]


def test_the_first_of_a_sorted_file_are_of_every_kind() -> None:
    chosen = spread(["doodles"] * 300, NAMES, 24)
    assert len(set(chosen)) == 24
    assert min(Counter(LABELS[position] for position in chosen).values()) >= 4


def test_the_order_of_the_file_does_not_matter() -> None:
    there = [NAMES[position] for position in spread(["doodles"] * 300, NAMES, 24)]
    back = NAMES[::-1]
    assert [back[position] for position in spread(["doodles"] * 300, back, 24)] == there


def test_domains_take_turns_until_they_have_no_more() -> None:
    domains = ["a"] * 3 + ["b"] * 5
    chosen = spread(domains, NAMES[:8], 100)
    assert [domains[position] for position in chosen] == ["a", "b", "a", "b", "a", "b", "b", "b"]
    assert sorted(chosen) == list(range(8))
    assert spread(domains, NAMES[:8], 3) == chosen[:3]
    assert spread([], [], 3) == []


def test_what_shares_a_name_stands_together() -> None:
    order = mixed(["a"] * 6, ["x", "y", "z", "x", "y", "z"])["a"]
    assert [{order[place] % 3, order[place + 1] % 3} for place in (0, 2, 4)] == [
        {order[place] % 3} for place in (0, 2, 4)
    ]
