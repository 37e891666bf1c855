"""A cohort in one process: near the exact sums, weighted, a bounded number of terms in memory; and one under masks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from samples_of_clients import NUM_CLIENTS, contributions, random_params

from fedcmp.aggregation.contribution import Contribution, MappedCohort, delta_of
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed import cohort as cohorts
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.distributed.secure import ClientsLost, SecureCohort, Sizes
from fedcmp.errors import AggregationError
from fedcmp.secure.parties import Advertisement, Answer, Masked, Shares, num_bytes
from fedcmp.secure.protocol import Losses
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


@pytest.mark.parametrize(("scale", "held"), [(0.0, 2**40), (5e-324, 0), (1.0, 0), (3e305, 2**40)])
def test_secure_sums_of_any_size_have_the_bits_of_plain_ones(scale: float, held: int, monkeypatch) -> None:
    monkeypatch.setattr(cohorts, "HELD_BYTES", held)

    def term(one: Contribution) -> Params:
        parts = {"w": scale * one.delta["linear_1.weight"].double(), "b": one.delta["linear_1.bias"]}
        return {
            **parts,
            "one": torch.tensor(float(one.client_id)),
            "none": torch.zeros(0, 3),
            "yes": torch.tensor([True]),
        }

    plain, secure = LocalCohort(contributions()), SecureCohort(contributions())
    torch.testing.assert_close(secure.sum(term), plain.sum(term), rtol=0, atol=0)
    assert secure.traffic == plain.traffic
    assert secure.sum(lambda one: {}) == {}


def test_the_server_gets_messages_of_the_protocol_and_no_term() -> None:
    seen: list = []
    clients = contributions()
    cohort = SecureCohort(clients, watch=seen.append)
    cohort.sum(delta_of)
    assert Counter(map(type, seen)) == dict.fromkeys((Sizes, Advertisement, Shares, Masked, Answer), NUM_CLIENTS)
    assert cohort.costs.up == sum(map(num_bytes, seen))
    by_id = {client.client_id: client.delta.values() for client in clients}
    exponents = np.max([one.exponents for one in seen if isinstance(one, Sizes)], axis=0)
    for one in seen:
        if isinstance(one, Masked):
            flat = np.concatenate([
                np.round(np.ldexp(value.double().numpy(), 62 - 3 - exponent)).astype(np.int64).ravel()
                for value, exponent in zip(by_id[one.client], exponents, strict=True)
            ])  # fmt: skip
            assert one.words.shape == flat.shape
            assert not np.isin(one.words.view(np.int64), flat).any()


@pytest.mark.parametrize(("name", "pairwise"), [("krum", 0), ("median", 0), ("fedavg", 64)])
def test_what_looks_at_single_clients_is_refused(name: str, pairwise: int) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name, pairwise=pairwise)), random_params(1)
    cohort = SecureCohort(contributions(), method=type(aggregator.fuse).__name__)
    with pytest.raises(AggregationError, match=r"aggregator\.pairwise=0"):
        aggregator.aggregate(cohort, params, aggregator.init(params))


def test_a_loss_leaves_a_cohort_of_the_others_in_the_first_sum_and_ends_the_round_in_a_later_one() -> None:
    def lossy(number: int, *clients: int) -> SecureCohort:
        """``clients`` send no words in this sum."""
        some = Losses(words=frozenset(clients))
        return SecureCohort(contributions(), losses=lambda now: some if now == number else Losses())

    cohort = lossy(0, 2, 5)
    with pytest.raises(ClientsLost) as found:
        cohort.sum(delta_of)
    assert (found.value.survivors, found.value.lost) == ((0, 1, 3, 4, 6), (2, 5))
    assert cohort.costs.up > 0
    with pytest.raises(AggregationError, match="only 4 of 7 clients"):
        lossy(0, 1, 2, 3).sum(delta_of)
    cohort = lossy(1, 3)
    cohort.sum(delta_of)
    with pytest.raises(AggregationError, match=r"\[3\]") as later:
        cohort.sum(delta_of)
    assert not isinstance(later.value, ClientsLost)
    silent = SecureCohort(contributions(), losses=lambda number: Losses(answer=frozenset({0, 6})))
    expected = LocalCohort(contributions()).sum(delta_of)  # clients lost after their words arrived count
    torch.testing.assert_close(silent.sum(delta_of), expected, rtol=0, atol=0)
