"""A cohort that sums under masks: the bits of the plain one, and a server that is sent nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from samples_of_clients import NUM_CLIENTS, contributions, random_params

from fedcmp.aggregation.contribution import Contribution, delta_of
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator, sums_only_methods
from fedcmp.distributed import cohort as cohorts
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.distributed.secure import ClientsLost, SecureCohort, Sizes
from fedcmp.errors import AggregationError
from fedcmp.secure.parties import Advertisement, Answer, Masked, Shares, num_bytes
from fedcmp.secure.protocol import Losses


def lost_in(number: int, *clients: int):
    """``clients`` send no words in this sum."""
    return lambda now: Losses(words=frozenset(clients)) if now == number else Losses()


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


@pytest.mark.parametrize("name", sums_only_methods())
def test_every_sums_only_method_has_the_bits_of_the_plain_cohort(name: str) -> None:
    aggregator = build_aggregator(AggregatorConfig(name, pairwise=0, clip_norm=0.3))
    params = random_params(1)
    state = aggregator.init(params)
    for number in range(2):
        cohort = SecureCohort(contributions(number))
        plain = aggregator.aggregate(LocalCohort(contributions(number)), params, state)
        secure = aggregator.aggregate(cohort, params, state)
        assert same(secure.params, plain.params)
        assert same(secure.state, plain.state)
        assert secure.metrics == plain.metrics, "the bytes of the method too, as if there were no masks"
        assert cohort.costs.up > secure.metrics["bytes/up"], "masks cost more"
        params, state = plain.params, plain.state


@pytest.mark.parametrize(("scale", "held"), [(0.0, 2**40), (5e-324, 0), (1.0, 0), (3e305, 2**40)])
def test_sums_of_any_size_have_the_bits_of_the_plain_cohort(
    scale: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohorts, "HELD_BYTES", held)
    clients = contributions()

    def term(one: Contribution):
        return {
            "w": scale * one.delta["linear_1.weight"].double(),
            "b": one.delta["linear_1.bias"],
            "one": torch.tensor(float(one.client_id)),
            "none": torch.zeros(0, 3),
            "yes": torch.tensor([True]),
        }

    plain, secure = LocalCohort(clients), SecureCohort(clients)
    assert same(secure.sum(term), plain.sum(term))
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
    cohort = SecureCohort(contributions(), losses=lost_in(0, 2, 5))
    with pytest.raises(ClientsLost) as found:
        cohort.sum(delta_of)
    assert (found.value.survivors, found.value.lost) == ((0, 1, 3, 4, 6), (2, 5))
    assert cohort.costs.up > 0
    with pytest.raises(AggregationError, match="only 4 of 7 clients"):
        SecureCohort(contributions(), losses=lost_in(0, 1, 2, 3)).sum(delta_of)
    cohort = SecureCohort(contributions(), losses=lost_in(1, 3))
    cohort.sum(delta_of)
    with pytest.raises(AggregationError, match=r"\[3\]") as later:
        cohort.sum(delta_of)
    assert not isinstance(later.value, ClientsLost)
    silent = SecureCohort(contributions(), losses=lambda number: Losses(answer=frozenset({0, 6})))
    expected = LocalCohort(contributions()).sum(delta_of)
    assert same(silent.sum(delta_of), expected), "clients lost after their words arrived count"
