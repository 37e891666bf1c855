"""Statistics against numbers by hand."""

from __future__ import annotations

import math

import pytest

from fedcmp.compare.statistics import holm, mean_ranks, paired, recovered


def test_recovered_is_a_mean_over_the_seeds_that_all_have() -> None:
    local, centralized = {1: 2.0, 2: 2.5, 3: 1.0, 4: 1.0}, {1: 1.0, 2: 1.0, 3: 1.0}
    assert recovered({1: 1.5, 2: 1.5, 9: 0.0}, local, centralized) == pytest.approx((0.5 + 2 / 3) / 2)
    assert recovered({1: 1.5, 2: 1.5, 3: 1.5}, local, centralized) is None, "gaps 1, 1.5 and 0: two errors are 0.88"
    assert recovered({1: 2.5}, local, centralized) == pytest.approx(-0.5)
    assert recovered({3: 1.0}, local, centralized) is None, "there is nothing to recover"
    assert recovered({4: 1.0}, local, centralized) is None


def test_the_paired_test_by_hand() -> None:
    # gaps 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t = 0.2 / (0.1 / sqrt(3)) = 3.4641, 2 degrees of freedom;
    # two-sided p of Student's t with 2 degrees: 1 - t / sqrt(t^2 + 2)
    t = 2 * math.sqrt(3)
    one, other = {1: 1.1, 2: 1.2, ("iid", 1): 1.3, 9: 5.0}, {1: 1.0, 2: 1.0, ("iid", 1): 1.0}
    found = paired(one, other)
    assert found.difference == pytest.approx(0.2)
    assert found.p == pytest.approx(1 - t / math.sqrt(t**2 + 2), abs=1e-9)
    assert (found.pairs, found.wins, found.ties, found.losses) == (3, 0, 0, 3)
    back = paired(other, one)
    assert (back.wins, back.losses, back.difference) == (3, 0, pytest.approx(-0.2))


def test_too_little_or_too_alike_for_a_test() -> None:
    assert paired({1: 1.0}, {1: 2.0}) == (1, -1.0, None, 1, 0, 0)
    assert paired({1: 1.0}, {2: 2.0}) == (0, None, None, 0, 0, 0)
    same = paired({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0 + 1e-12})
    assert (same.p, same.ties) == (1.0, 2)
    assert paired({1: 1.5, 2: 2.5}, {1: 1.0, 2: 2.0}).p == 0.0


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 -> x4 0.02, x3 0.03, x2 0.06, x1 0.04 -> running maximum 0.02, 0.03, 0.06, 0.06
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": None})
    assert found.pop("none") is None, "only tests that were made count"
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_ranks_share_ties_and_put_failures_last() -> None:
    blocks = [{"a": 1.0, "b": 1.0, "c": 0.5}, {"a": None, "b": None, "c": 3.0}, {"a": 1.0, "b": 2.0, "c": 3.0}]
    assert mean_ranks(blocks) == pytest.approx({"a": 6 / 3, "b": 7 / 3, "c": 5 / 3})
    assert mean_ranks([]) == {}
