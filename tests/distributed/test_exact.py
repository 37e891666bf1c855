"""Order-free sums: same bits in any order, near the exact sum, for every magnitude that float64 has."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution, MappedCohort, Weighted, shares
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.distributed.exact import BITS, CHUNK, Product, from_fixed, largest_magnitude, scale_exponents, sum_fixed
from fedcmp.errors import AggregationError


def exact_sum(values: list[torch.Tensor]) -> torch.Tensor:
    largest = {"w": max(largest_magnitude(value) for value in values)}
    exponents = scale_exponents(largest, len(values))
    return from_fixed(sum_fixed([{"w": value} for value in values], exponents)["w"], exponents["w"])


def random_terms(count: int, scale: float = 1.0, spread: float = 30.0) -> list[torch.Tensor]:
    """Terms whose magnitudes differ by up to ``2^spread``."""
    stream = torch.Generator().manual_seed(count)
    exponents = -spread * torch.rand(count, 40, generator=stream, dtype=torch.float64)
    return list(scale * torch.randn(count, 40, generator=stream, dtype=torch.float64) * 2.0**exponents)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e-310, 1e-160, 1e200, 1e303])
def test_the_error_is_what_the_docstring_says(count: int, scale: float) -> None:
    terms = random_terms(count, scale)
    bound = count * Fraction(max(largest_magnitude(value) for value in terms))
    bound *= Fraction(2) ** (math.ceil(math.log2(count)) - BITS)
    for found, entries in zip(exact_sum(terms).tolist(), torch.stack(terms).T.tolist(), strict=True):
        exact = sum(map(Fraction, entries))
        # the sum itself, and its one rounding to float64, which below 2^-1022 is absolute
        assert abs(Fraction(found) - exact) <= bound + Fraction(max(math.ulp(found), math.ulp(0.0)))


def test_it_is_as_good_as_fsum_where_terms_are_of_one_size() -> None:
    terms = random_terms(8, spread=4.0)
    expected = torch.tensor([math.fsum(entries) for entries in torch.stack(terms).T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(exact_sum(terms), expected, rtol=1e-15, atol=1e-16)


def test_what_cancels_leaves_nothing_behind() -> None:
    small = torch.tensor([2.0**-50], dtype=torch.float64)
    assert exact_sum([torch.ones(1), small, -torch.ones(1)]).item() == 2.0**-50
    assert exact_sum([small, torch.ones(1), torch.zeros(1), -torch.ones(1)]).item() == 2.0**-50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_and_grouping_do_not_matter(dtype: torch.dtype) -> None:
    terms = [value.to(dtype) for value in random_terms(33)]
    expected = exact_sum(terms)
    exponents = scale_exponents({"w": max(largest_magnitude(value) for value in terms)}, len(terms))
    for seed in range(5):
        order = torch.randperm(len(terms), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [terms[place] for place in order]
        assert torch.equal(exact_sum(shuffled), expected)
        cuts = (0, 1 + seed, 9 + 3 * seed, 33)
        parts = [sum_fixed([{"w": one} for one in shuffled[a:b]], exponents)["w"] for a, b in itertools.pairwise(cuts)]
        assert torch.equal(from_fixed(torch.stack(parts).sum(0), exponents["w"]), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1024, 1025])
@pytest.mark.parametrize("value", [1.0, 1.0 - 2.0**-53, 2.0**-1074, 1e300, -1.0])
def test_no_sum_of_equal_terms_overflows(count: int, value: float) -> None:
    exponent = scale_exponents({"w": abs(value)}, count)["w"]
    one = int(sum_fixed([{"w": torch.tensor([value], dtype=torch.float64)}], {"w": exponent})["w"])
    assert abs(count * one) <= 2**BITS
    total = from_fixed(torch.tensor([count * one]), exponent)
    assert float(total) == pytest.approx(count * value, rel=1e-15 * count)


def test_zeros_no_entries_scalars_and_other_types() -> None:
    assert exact_sum([torch.zeros(2), torch.zeros(2)]).tolist() == [0.0, 0.0]
    assert exact_sum([torch.zeros(0, 3), torch.zeros(0, 3)]).shape == (0, 3)
    assert exact_sum([torch.tensor(1.5), torch.tensor(2.0)]).item() == 3.5
    assert exact_sum([torch.tensor([True, False]), torch.tensor([True, True])]).tolist() == [2.0, 1.0]
    assert exact_sum([torch.tensor([-3]), torch.tensor([5])]).dtype == torch.float64
    turned = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(exact_sum([turned, turned]), 2 * turned.double())
    long = torch.arange(2.0 * CHUNK + 3)
    assert torch.equal(exact_sum([long, long]), 2 * long.double())


def test_terms_are_not_changed() -> None:
    term = torch.tensor([1.0, 2.0], dtype=torch.float64)
    exact_sum([term, term])
    assert term.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    largest = {"fine": 1.0, "layer.bias": largest_magnitude(torch.tensor([0.0, bad, 1.0]))}
    with pytest.raises(AggregationError, match=r"'layer.bias' has a term that is not finite"):
        scale_exponents(largest, 2)


def test_sums_beyond_float64_are_named() -> None:
    with pytest.raises(AggregationError, match=r"'w' may leave float64"):
        scale_exponents({"w": 1e308}, 2)


def test_a_product_that_is_multiplied_as_it_is_added_has_the_bits_of_the_tensor() -> None:
    stream = torch.Generator().manual_seed(0)
    values = [torch.randn(3, CHUNK // 2 + 7, generator=stream) * 10.0**place for place in range(-2, 3)]
    weights = [0.1, 1 / 3, 0.25, 0.7, 1e-3]
    products = [value.double() * weight for value, weight in zip(values, weights, strict=True)]
    lazy = [Product(value, weight) for value, weight in zip(values, weights, strict=True)]
    assert [largest_magnitude(one) for one in lazy] == [largest_magnitude(one) for one in products]
    exponents = scale_exponents({"w": max(map(largest_magnitude, lazy))}, len(lazy))
    one, other = (sum_fixed([{"w": value} for value in terms], exponents)["w"] for terms in (products, lazy))
    assert torch.equal(one, other)
    assert not torch.equal(one, sum_fixed([{"w": value} for value in values], exponents)["w"])
    assert math.isnan(largest_magnitude(Product(torch.tensor([math.inf]), 0.0)))


def test_a_cohort_adds_a_weighted_sum_as_any_other_function() -> None:
    stream = torch.Generator().manual_seed(1)
    clients = [Contribution(k, {"w": torch.randn(5, generator=stream)}, num_samples=k + 1) for k in range(3)]
    cohort = LocalCohort(clients)
    weighted = Weighted(lambda one: one.delta, shares(cohort))
    plain = cohort.sum(lambda one: weighted(one))
    assert torch.equal(cohort.sum(weighted)["w"], plain["w"])
    doubled = MappedCohort(cohort, lambda one: replace(one, delta={"w": 2 * one.delta["w"]}))
    assert torch.equal(doubled.sum(weighted)["w"], 2 * plain["w"])
    assert cohort.sum(weighted)["w"].dtype == torch.float64
