"""Which objects are asked about."""

from __future__ import annotations

from collections import Counter

import torch

from fedcmp.evaluation.probe import KINDS, choose_pairs

OBJECTS = [("cat",), ("dog",), ("dog",), ("dog",), ("fox",), (), ("red",), ("blue",), ("gold",), ("gold",), ("one",)]
DOMAINS = ["pets"] * 6 + ["paint"] * 4 + ["alone"]
FEATURES = torch.tensor(
    [[0.0, 0], [5, 0], [9, 0], [7, 0], [0, 3], [0, 0], [1, 1], [1, 9], [1, 2], [1, 4], [0, 0]]
)  # the mean of dogs is at (7, 0), of gold at (1, 3)


def picked(limit: int = 100) -> dict[tuple[int, str], tuple[str, str]]:
    pairs = choose_pairs([f"id-{n}" for n in range(11)], OBJECTS, DOMAINS, FEATURES, limit)
    assert len({(pair.position, pair.kind) for pair in pairs}) == len(pairs)
    return {(pair.position, pair.kind): (pair.present, pair.absent) for pair in pairs}


def test_popular_is_frequent_and_adversarial_looks_alike() -> None:
    pairs = picked()
    assert pairs[0, "popular"] == ("cat", "dog"), "most pets are dogs"
    assert pairs[0, "adversarial"] == ("cat", "fox"), "foxes look like this cat"
    assert pairs[4, "popular"] == ("fox", "dog")
    assert pairs[4, "adversarial"] == ("fox", "cat")
    assert pairs[1, "popular"] == ("dog", "cat"), "of equals the first by name"
    assert pairs[6, "adversarial"] == ("red", "gold")
    assert pairs[7, "adversarial"] == ("blue", "gold")


def test_every_picture_with_a_label_is_asked_about_in_three_ways() -> None:
    pairs = picked()
    assert {position for position, _ in pairs} == {0, 1, 2, 3, 4, 6, 7, 8, 9}, "not the nameless, not the only one"
    assert {kind for _, kind in pairs} == set(KINDS)
    assert len(pairs) == 27
    for (position, _), (present, absent) in pairs.items():
        group = {name for p, shown in enumerate(OBJECTS) if DOMAINS[p] == DOMAINS[position] for name in shown}
        assert present in OBJECTS[position]
        assert absent in group - set(OBJECTS[position])


def test_a_limit_is_spread_over_the_domains_and_changes_no_pair() -> None:
    few = picked(3)
    assert {position for position, _ in few} == {0, 3, 7}, "two pets and one paint, by the hashes of their ids"
    assert few.items() <= picked().items()
    assert picked() == picked()


def test_samples_sorted_by_what_they_show_are_asked_about_alike() -> None:
    objects = [(name,) for name in ("cat", "dog", "fox") for _ in range(50)]
    ids = [f"doodles-{number:05d}" for number in range(150)]
    pairs = choose_pairs(ids, objects, ["x"] * 150, torch.zeros(150, 2), 24)
    asked = Counter(pair.present for pair in pairs if pair.kind == "random")
    assert asked.total() == 24
    assert min(asked[name] for name in ("cat", "dog", "fox")) >= 4


def test_random_is_random() -> None:
    objects, domains = [(f"object {n}",) for n in range(40)], ["x"] * 40
    pairs = choose_pairs([str(n) for n in range(40)], objects, domains, torch.zeros(40, 2), 40)
    assert len({pair.absent for pair in pairs if pair.kind == "random"}) > 15


def test_several_objects_are_asked_about_in_turn() -> None:
    objects = [("a", "b"), ("c",), ("b", "c", "d")]
    pairs = choose_pairs(["0", "1", "2"], objects, ["x"] * 3, torch.zeros(3, 2), 3)
    assert [pair.present for pair in pairs if pair.position == 0] == ["a", "b", "a"]
    assert [pair.present for pair in pairs if pair.position == 2] == ["b", "c", "d"]
    assert all(pair.absent == "a" for pair in pairs if pair.position == 2)
