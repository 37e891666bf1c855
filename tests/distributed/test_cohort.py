"""The local cohort, oracle of all others."""

from __future__ import annotations

import math

import pytest
import torch
from samples_of_clients import contributions

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed import terms
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.errors import AggregationError
from fedcmp.types import Params


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
    with pytest.raises(AggregationError, match=r"clients \[2, 3, 5\], got \[5, 4\]"):
        cohort.gather(lambda one: one.delta, [5, 4])


def test_sums_do_not_lose_small_terms() -> None:
    cohort = LocalCohort([client(0, 1.0), client(1, 1e-9), client(2, -1.0)])
    assert cohort.sum(lambda one: one.delta)["w"].item() == torch.tensor(1e-9).item()


def test_sums_are_near_the_exact_ones() -> None:
    clients = contributions()
    cohort = LocalCohort(clients)
    total = cohort.sum(lambda one: one.delta, cohort.weights)
    for name, value in total.items():
        rows = torch.stack([
            weight * one.delta[name].double().flatten() for weight, one in zip(cohort.weights, clients, strict=True)
        ])  # fmt: skip
        expected = torch.tensor([math.fsum(entries) for entries in rows.T.tolist()], dtype=torch.float64)
        torch.testing.assert_close(value.flatten(), expected, rtol=1e-15, atol=1e-17)


@pytest.mark.parametrize(("held", "calls"), [(7 * 4 * 8, 7), (7 * 4 * 8 - 1, 14)])
def test_terms_that_do_not_fit_are_computed_twice(monkeypatch: pytest.MonkeyPatch, held: int, calls: int) -> None:
    seen: list[int] = []

    def term(one: Contribution) -> Params:
        seen.append(one.client_id)
        return {"bias": one.delta["linear_1.bias"].double() / 3}

    clients = contributions()
    expected = LocalCohort(clients).sum(term)["bias"]
    seen.clear()
    monkeypatch.setattr(terms, "HELD_BYTES", held)
    cohort = LocalCohort(clients)
    assert torch.equal(cohort.sum(term)["bias"], expected)
    assert len(seen) == calls
    assert cohort.traffic.up == 16


@pytest.mark.parametrize(("value", "message"), [
    (torch.tensor([math.nan]), "client 2 brings a value that is not finite into the sum of 'w'"),
    (torch.tensor([-math.inf]), "client 2 brings a value that is not finite into the sum of 'w'"),
    (torch.zeros(2), r"clients 1 and 2 send different tensors: 'w' is float32 \[1\] and float32 \[2\]"),
    (torch.zeros(1).double(), r"clients 1 and 2 send different tensors: 'w' is float32 \[1\] and float64 \[1\]"),
])  # fmt: skip
def test_terms_that_cannot_be_added_are_named(value: torch.Tensor, message: str) -> None:
    cohort = LocalCohort([client(1, 0.0), Contribution(2, {"w": value})])
    with pytest.raises(AggregationError, match=message):
        cohort.sum(lambda one: one.delta)


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
