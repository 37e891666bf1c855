"""A cohort in one process: near the exact sums, weighted, with a bounded number of terms in memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from samples_of_clients import contributions

from fedcmp.aggregation.contribution import Contribution, MappedCohort, delta_of
from fedcmp.distributed import cohort as cohorts
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.distributed.secure import SecureCohort
from fedcmp.errors import AggregationError
from fedcmp.types import Params


def client(number: int, value: float, samples: int = 1, tokens: int = 0) -> Contribution:
    return Contribution(number, {"w": torch.tensor([value])}, num_samples=samples, num_tokens=tokens)


@pytest.mark.parametrize(("weighting", "expected"), [
    ("samples", [0.25, 0.75]), ("tokens", [0.8, 0.2]), ("uniform", [0.5, 0.5]),
])  # fmt: skip
def test_clients_are_sorted_and_weighted(weighting: str, expected: list[float]) -> None:
    cohort = LocalCohort([client(5, 1.0, 30, 20), client(2, 2.0, 10, 80)], weighting)
    assert (cohort.clients, cohort.population) == ((2, 5), 2)
    assert cohort.weights.tolist() == pytest.approx(expected)
    assert cohort.sum(delta_of)["w"].tolist() == [3.0]
    assert cohort.gather(delta_of)["w"].tolist() == [[2.0], [1.0]]
    assert cohort.gather(delta_of, [5])["w"].tolist() == [[1.0]]
    with pytest.raises(AggregationError, match=r"clients \[2, 5\], got \[5, 4\]"):
        cohort.gather(delta_of, [5, 4])
    assert LocalCohort([client(5, 1.0)], population=7).population == 7


@pytest.mark.parametrize("calls", [7, 14])
def test_weighted_sums_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Also through a changed cohort, and where terms do not fit the memory and are computed twice."""
    seen: list[int] = []

    def term(one: Contribution) -> Params:
        seen.append(one.client_id)
        return delta_of(one)

    clients = contributions()
    size = sum(value.numel() for value in clients[0].delta.values())
    monkeypatch.setattr(cohorts, "HELD_BYTES", 7 * 4 * size - (calls > 7))
    cohort = LocalCohort(clients)
    total = cohort.sum(term, cohort.weights)
    assert (len(seen), cohort.traffic.up) == (calls, 4 * size)
    doubled = MappedCohort(cohort, lambda one: replace(one, delta={name: 2 * x for name, x in one.delta.items()}))
    for name, value in total.items():
        rows = torch.stack([
            weight * one.delta[name].double().flatten() for weight, one in zip(cohort.weights, clients, strict=True)
        ])  # fmt: skip
        expected = torch.tensor([math.fsum(entries) for entries in rows.T.tolist()], dtype=torch.float64)
        bound = len(clients) * float(rows.abs().max()) * 2.0**-51
        torch.testing.assert_close(value.flatten(), expected, rtol=1e-15, atol=bound)
        assert torch.equal(doubled.sum(delta_of, cohort.weights)[name], 2 * value)


@pytest.mark.parametrize("kind", [LocalCohort, SecureCohort])
@pytest.mark.parametrize(("value", "message"), [
    (torch.tensor([math.nan]), "client 2 .*'w'"),
    (torch.tensor([-math.inf]), "client 2 .*'w'"),
    (torch.zeros(2), "clients 1 and 2 .*'w'"),
    (torch.zeros(1).double(), "clients 1 and 2 .*'w'"),
])  # fmt: skip
def test_terms_that_cannot_be_added_are_named(kind: type[LocalCohort], value: torch.Tensor, message: str) -> None:
    cohort = kind([client(1, 0.0), Contribution(2, {"w": value})])
    with pytest.raises(AggregationError, match=message):
        cohort.sum(delta_of, cohort.weights)


@pytest.mark.parametrize("clients", [
    [], [client(1, 0.0), client(1, 0.0)], [client(1, 0.0, 0)], [client(1, 0.0, 2), client(2, 0.0, -1)],
    [replace(client(1, 0.0), num_samples=math.inf)],
])  # fmt: skip
def test_impossible_cohorts_are_refused(clients: list[Contribution]) -> None:
    with pytest.raises(AggregationError):
        LocalCohort(clients)
