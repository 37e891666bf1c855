"""The local cohort, oracle of all others."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.base import Contribution
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.errors import AggregationError


def client(number: int, value: float, samples: int = 1, tokens: int = 0) -> Contribution:
    return Contribution(number, {"w": torch.tensor([value])}, num_samples=samples, num_tokens=tokens)


def test_clients_are_sorted_and_weighted_by_samples() -> None:
    cohort = LocalCohort([client(5, 1.0, 30), client(2, 2.0, 10)])
    assert cohort.clients == (2, 5)
    assert cohort.weights.tolist() == [0.25, 0.75]
    assert cohort.sum(lambda one: one.delta)["w"].tolist() == [3.0]
    assert cohort.gather(lambda one: one.delta)["w"].tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize(("weighting", "expected"), [
    ("samples", [0.25, 0.75]),
    ("tokens", [0.8, 0.2]),
    ("uniform", [0.5, 0.5]),
])  # fmt: skip
def test_weights_count_what_they_are_named_for(weighting: str, expected: list[float]) -> None:
    cohort = LocalCohort([client(5, 1.0, 30, 20), client(2, 2.0, 10, 80)], weighting)
    assert cohort.weights.tolist() == pytest.approx(expected)
    assert cohort.population == 2
    assert LocalCohort([client(5, 1.0)], population=7).population == 7


def test_some_clients_can_be_gathered() -> None:
    cohort = LocalCohort([client(5, 1.0), client(2, 2.0), client(3, 4.0)])
    assert cohort.gather(lambda one: one.delta, [5, 3])["w"].tolist() == [[1.0], [4.0]]


def test_sums_do_not_lose_small_terms() -> None:
    cohort = LocalCohort([client(0, 1.0), client(1, 1e-9), client(2, -1.0)])
    assert float(cohort.sum(lambda one: one.delta)["w"]) == pytest.approx(1e-9, rel=1e-3)


@pytest.mark.parametrize(("clients", "message"), [
    ([], "at least one client"),
    ([client(1, 0.0), client(1, 0.0)], "sent two updates"),
    ([client(1, 0.0, 0)], "not all 0"),
    ([client(1, 0.0, 2), client(2, 0.0, -1)], "0 or more"),
])  # fmt: skip
def test_impossible_cohorts_are_named(clients, message: str) -> None:
    with pytest.raises(AggregationError, match=message):
        LocalCohort(clients)


def test_the_server_passes_results_and_exceptions_on() -> None:
    cohort = LocalCohort([client(0, 1.0)])
    assert cohort.on_server(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        cohort.on_server(lambda: 1 // 0)
