"""The standard error of image use against a simulation, and when it counts as none."""

from __future__ import annotations

import numpy as np
import pytest

from fedcmp.evaluation.image_use import ignores_pictures, standard_error


def draw(rng: np.random.Generator) -> tuple[list[float], list[float], list[list[int]], list[str]]:
    """Rises and tokens of two domains, 60 and 30 pictures with two captions each; the two of a picture are alike."""
    tokens = rng.integers(4, 20, 180).astype(float)
    rises = tokens * np.repeat(rng.normal(0.3, 0.5, 90), 2) + rng.normal(0, 1, 180)
    pictures = [[2 * number, 2 * number + 1] for number in range(90)]
    return rises.tolist(), tokens.tolist(), pictures, ["a"] * 120 + ["b"] * 60


def test_the_standard_error_is_the_spread_of_what_is_measured() -> None:
    rng, uses, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        rises, tokens, pictures, domains = draw(rng)
        uses.append((sum(rises[:120]) / sum(tokens[:120]) + sum(rises[120:]) / sum(tokens[120:])) / 2)
        errors.append(standard_error(rises, tokens, pictures, domains))
    assert np.mean(errors) == pytest.approx(np.std(uses), rel=0.1)


def test_one_picture_of_a_domain_tells_no_error() -> None:
    assert standard_error([1.0, 2.0, 3.0], [1, 1, 1], [[0], [1], [2]], ["a", "a", "b"]) is None


@pytest.mark.parametrize(
    ("use", "error", "ignored"),
    [(0.1, 0.02, False), (0.03, None, True), (0.1, 0.11, True), (-0.5, 0.1, True), (None, None, False)],
)
def test_about_zero(use: float | None, error: float | None, ignored: bool) -> None:
    assert ignores_pictures({"loss": 2.0, "image_use": use, "image_use_se": error}) is ignored
