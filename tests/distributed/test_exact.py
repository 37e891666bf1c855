"""Order-free sums: same bits in any order, near the exact sum, for every magnitude that float64 has."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from fedcmp.distributed.exact import BITS, CHUNK, Term, from_fixed, largest_magnitude, scale_exponents, sum_fixed
from fedcmp.errors import AggregationError


def exact_sum(values: list[torch.Tensor]) -> torch.Tensor:
    exponents = scale_exponents({"w": max(map(largest_magnitude, values))}, len(values))
    return from_fixed(sum_fixed([Term({"w": value}) for value in values], exponents)["w"], exponents["w"])


def random_terms(count: int, scale: float = 1.0, spread: float = 30.0) -> list[torch.Tensor]:
    """Terms whose magnitudes differ by up to ``2^spread``."""
    stream = torch.Generator().manual_seed(count)
    exponents = -spread * torch.rand(count, 40, generator=stream, dtype=torch.float64)
    return list(scale * torch.randn(count, 40, generator=stream, dtype=torch.float64) * 2.0**exponents)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e-310, 1e303])
def test_the_error_is_what_the_docstring_says(count: int, scale: float) -> None:
    terms = random_terms(count, scale)
    bound = count * Fraction(max(map(largest_magnitude, terms)))
    bound *= Fraction(1, 2**51)
    for found, entries in zip(exact_sum(terms).tolist(), torch.stack(terms).T.tolist(), strict=True):
        exact = sum(map(Fraction, entries))
        # the sum itself, and its one rounding to float64, which below 2^-1022 is absolute
        assert abs(Fraction(found) - exact) <= bound + Fraction(max(math.ulp(found), math.ulp(0.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_and_grouping_do_not_matter(dtype: torch.dtype) -> None:
    terms = [value.to(dtype) for value in random_terms(33)]
    before = [value.clone() for value in terms]
    expected = exact_sum(terms)
    exponents = scale_exponents({"w": max(map(largest_magnitude, terms))}, len(terms))
    for seed in range(5):
        order = torch.randperm(len(terms), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [terms[place] for place in order]
        assert torch.equal(exact_sum(shuffled), expected)
        cuts = itertools.pairwise((0, 1 + seed, 9 + 3 * seed, 33))
        parts = [sum_fixed([Term({"w": one}) for one in shuffled[a:b]], exponents)["w"] for a, b in cuts]
        assert torch.equal(from_fixed(torch.stack(parts).sum(0), exponents["w"]), expected)
    assert all(torch.equal(one, two) for one, two in zip(terms, before, strict=True)), "terms are not changed"
    small = torch.tensor([2.0**-50], dtype=torch.float64)
    assert exact_sum([torch.ones(1), small, -torch.ones(1)]).item() == 2.0**-50


@pytest.mark.parametrize("count", [1, 2, 3, 4, 1025, 5000])
@pytest.mark.parametrize("value", [1.0, 1.0 - 2.0**-53, 2.0**-1074, -1e300])
def test_no_sum_of_equal_terms_overflows(count: int, value: float) -> None:
    exponent = scale_exponents({"w": abs(value)}, count)["w"]
    one = int(sum_fixed([Term({"w": torch.tensor([value], dtype=torch.float64)})], {"w": exponent})["w"])
    assert abs(count * one) <= 2**BITS
    assert float(from_fixed(torch.tensor([count * one]), exponent)) == pytest.approx(count * value, rel=1e-15 * count)


def test_zeros_no_entries_scalars_and_other_types() -> None:
    assert exact_sum([torch.zeros(2), torch.zeros(2)]).tolist() == [0.0, 0.0]
    assert exact_sum([torch.zeros(0, 3), torch.zeros(0, 3)]).shape == (0, 3)
    assert exact_sum([torch.tensor(1.5), torch.tensor(2.0)]).item() == 3.5
    assert exact_sum([torch.tensor([True, False]), torch.tensor([True, True])]).tolist() == [2.0, 1.0]
    for value in (torch.arange(6.0).reshape(2, 3).T, torch.arange(2.0 * CHUNK + 3)):
        assert torch.equal(exact_sum([value, value]), 2 * value.double())
    for largest in (largest_magnitude(torch.tensor([0.0, math.nan, 1.0])), 1e308):
        with pytest.raises(AggregationError, match=r"layer\.bias"):
            scale_exponents({"fine": 1.0, "layer.bias": largest}, 2)


def test_a_weight_has_the_bits_of_the_product_in_float64() -> None:
    stream = torch.Generator().manual_seed(0)
    values = [torch.randn(3, CHUNK // 2 + 7, generator=stream) * 10.0**place for place in range(-2, 3)]
    weights = [0.1, 1 / 3, 0.25, 0.7, 1e-3]
    products = [value.double() * weight for value, weight in zip(values, weights, strict=True)]
    exponents = scale_exponents({"w": max(map(largest_magnitude, products))}, len(products))
    lazy = [Term({"w": value}, weight) for value, weight in zip(values, weights, strict=True)]
    found, expected = (sum_fixed(terms, exponents)["w"] for terms in (lazy, [Term({"w": one}) for one in products]))
    assert torch.equal(found, expected)
