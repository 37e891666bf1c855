"""CIDEr-D by hand, against plain vectors over all n-grams, and against figures of the published scorer."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from fedcmp.evaluation.cider import cider_d, words_of

CANDIDATES = [
    "a man rides a brown horse on the beach",
    "two dogs play with a red ball",
    "a plate of food",
    "a red red red bus",
    "bus",
    "a kitchen with a stove and a large window over the sink",
]
REFERENCES = [
    [
        "A man is riding a brown horse on the beach.",
        "A person rides a horse near the ocean.",
        "a man rides a brown horse on the beach",
    ],
    ["Two dogs playing with a ball in the grass.", "A pair of dogs run after a red ball."],
    ["A plate of food sits on a wooden table.", "A white plate with food on it."],
    ["A red bus drives down the street.", "a large red bus on a city street"],
    ["The bus is parked beside the road."],
    ["A kitchen with a stove, a sink and a window.", "a small kitchen that has a window over the sink"],
]
PUBLISHED = (
    5.8140386633863255,
    2.008618121343117,
    2.6684468651506768,
    0.9511204421380776,
    0.4773621862524155,
    3.7043154678106665,
)
"""What CiderScorer of pycocoevalcap 1.2 gives for these captions, their words joined by spaces."""


def with_vectors(candidates: list[str], references: list[list[str]]) -> list[float]:
    """The formulas with dense vectors over every n-gram there is."""

    def grams(text: str, n: int) -> list[str]:
        words = words_of(text)
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    scores = [0.0] * len(candidates)
    for n in (1, 2, 3, 4):
        everything = [*candidates, *(text for one in references for text in one)]
        vocabulary = sorted({gram for text in everything for gram in grams(text, n)})
        in_pictures = np.array([sum(any(w in grams(s, n) for s in one) for one in references) for w in vocabulary])
        idf = np.log(len(references) / np.maximum(1, in_pictures))
        for place, (candidate, one) in enumerate(zip(candidates, references, strict=True)):
            c = np.array([grams(candidate, n).count(w) for w in vocabulary]) * idf
            for reference in one:
                s = np.array([grams(reference, n).count(w) for w in vocabulary]) * idf
                norms = np.linalg.norm(c) * np.linalg.norm(s)
                cosine = np.minimum(c, s) @ s / norms if norms > 0 else 0.0
                difference = len(words_of(candidate)) - len(words_of(reference))
                scores[place] += 10 / 4 / len(one) * math.exp(-(difference**2) / 72) * cosine
    return scores


def test_the_published_scorer_gives_the_same() -> None:
    found = cider_d(CANDIDATES, REFERENCES)
    assert found.each == pytest.approx(PUBLISHED, rel=1e-12)
    assert found.score == pytest.approx(sum(PUBLISHED) / 6, rel=1e-12)


def test_the_formulas_give_the_same_as_plain_vectors() -> None:
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choices("abcdefg", k=rng.randint(1, 10)))

    for _ in range(20):
        count = rng.randint(2, 7)
        references = [[text() for _ in range(rng.randint(1, 4))] for _ in range(count)]
        candidates = [text() for _ in range(count)]
        assert cider_d(candidates, references).each == pytest.approx(with_vectors(candidates, references), abs=1e-9)


def test_values_that_one_can_compute_by_hand() -> None:
    others = ["q r s t"]  # a second picture: every n-gram of the first stands in one of two

    def first(candidate: str, *references: str) -> float:
        return cider_d([candidate, "q r s t"], [list(references), others]).each[0]

    assert first("a b c d", "a b c d") == pytest.approx(10.0)
    assert first("A b, c D!", "a b c d") == pytest.approx(10.0), "case and punctuation do not count"
    assert first("a b x y", "a b c d") == pytest.approx(10 * (2 / 4 + 1 / 3) / 4)
    assert first("a b c d", "a b c d", "w x y z") == pytest.approx(5.0), "the mean over references"
    assert first("a b", "a b c d") == pytest.approx(10 * math.exp(-4 / 72) * (2 / math.sqrt(8) + 1 / math.sqrt(3)) / 4)
    assert first("a a a", "a b c") == pytest.approx(10 * (1 / (3 * math.sqrt(3))) / 4), "repeats are clipped"
    assert first("q r s t", "a b c d") == 0.0
    assert first("", "a b c d") == 0.0
    assert cider_d(["a b c d"], [["a b c d"]]).score == 0.0, "in a single picture nothing is telling"
