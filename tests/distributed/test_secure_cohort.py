"""A cohort that sums under masks: the bits of the plain one, and a server that is sent nothing else."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from samples_of_clients import NUM_CLIENTS, contributions, random_params

from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator, sums_only_rules
from fedcmp.distributed import terms
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.distributed.secure import ClientsLost, SecureCohort, Sizes
from fedcmp.errors import AggregationError
from fedcmp.secure import Advertisement, Answer, Losses, Masked, Shares, num_bytes


def lost_in(number: int, *clients: int):
    """``clients`` send no words in this sum."""
    return lambda now: Losses(words=frozenset(clients)) if now == number else Losses()


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def test_most_rules_work() -> None:
    assert set(PRESETS) - set(sums_only_rules()) == {"krum", "multi-krum", "median", "trimmed-mean"}


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize("name", sums_only_rules())
def test_every_sums_only_rule_has_the_bits_of_the_plain_cohort(name: str, clip_norm: float) -> None:
    aggregator = build_aggregator(AggregatorConfig(name, pairwise=0, clip_norm=clip_norm))
    params = random_params(1)
    state = aggregator.init(params)
    for number in range(3):
        cohort = SecureCohort(contributions(number))
        plain = aggregator.aggregate(LocalCohort(contributions(number)), params, state)
        secure = aggregator.aggregate(cohort, params, state)
        assert same(secure.params, plain.params)
        assert same(secure.state, plain.state)
        assert secure.metrics == plain.metrics, "the bytes of the rule too, as if there were no masks"
        assert cohort.num_sums >= 2
        assert cohort.costs.up > secure.metrics["bytes/up"], "masks cost more"
        params, state = plain.params, plain.state


@pytest.mark.parametrize("held", [0, 2**40])
@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e-200, 1.0, 3e305])
def test_sums_of_any_size_have_the_bits_of_the_plain_cohort(
    scale: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "HELD_BYTES", held)
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
    cohort.sum(lambda one: one.delta)
    assert Counter(map(type, seen)) == dict.fromkeys((Sizes, Advertisement, Shares, Masked, Answer), NUM_CLIENTS)
    assert cohort.costs.up == sum(map(num_bytes, seen))
    exponents = np.max([one.exponents for one in seen if isinstance(one, Sizes)], axis=0)
    for one in seen:
        if isinstance(one, Masked):
            (client,) = (client for client in clients if client.client_id == one.client)
            flat = [
                np.round(np.ldexp(value.double().numpy(), 62 - 3 - exponent)).astype(np.int64).ravel()
                for value, exponent in zip(client.delta.values(), exponents, strict=True)
            ]
            assert one.words.shape == np.concatenate(flat).shape
            assert not np.isin(one.words.view(np.int64), np.concatenate(flat)).any()
    for one in seen:
        if isinstance(one, Sizes):
            (client,) = (client for client in clients if client.client_id == one.client)
            for value, exponent in zip(client.delta.values(), one.exponents, strict=True):
                assert 2.0 ** (exponent - 1) <= float(value.abs().max()) < 2.0**exponent


@pytest.mark.parametrize("name", ["krum", "multi-krum", "median", "trimmed-mean"])
def test_rules_that_gather_are_refused_by_name_with_those_that_work(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name, pairwise=0)), random_params(1)
    rule = type(aggregator.fuse).__name__
    cohort = SecureCohort(contributions(), rule=rule)
    with pytest.raises(
        AggregationError, match=rf"{rule} asks for what single clients sent.*rules that work: diloco, fed"
    ):
        aggregator.aggregate(cohort, params, aggregator.init(params))


def test_cosines_between_clients_are_refused() -> None:
    aggregator, params = build_aggregator(AggregatorConfig("fedavg")), random_params(1)
    with pytest.raises(AggregationError, match=r"need aggregator\.pairwise=0"):
        aggregator.aggregate(SecureCohort(contributions()), params, aggregator.init(params))


def test_a_loss_in_the_first_sum_leaves_a_cohort_of_the_others_to_begin_again() -> None:
    aggregator, params = build_aggregator(AggregatorConfig("fedcmp", pairwise=0)), random_params(1)
    cohort = SecureCohort(contributions(), losses=lost_in(0, 2, 5))
    with pytest.raises(ClientsLost) as found:
        aggregator.aggregate(cohort, params, aggregator.init(params))
    assert found.value.survivors == (0, 1, 3, 4, 6)
    assert found.value.lost == (2, 5)
    assert cohort.costs.up > 0


def test_a_third_may_be_lost_and_no_more() -> None:
    with pytest.raises(AggregationError, match=r"only 4 of 7 clients sent their words, .* needs 5: at most a third, 2"):
        SecureCohort(contributions(), losses=lost_in(0, 1, 2, 3)).sum(lambda one: one.delta)
    with pytest.raises(AggregationError, match="at least 2 clients, got 1"):
        SecureCohort(contributions()[:1]).sum(lambda one: one.delta)


def test_a_loss_in_a_later_sum_ends_the_round_and_says_why() -> None:
    cohort = SecureCohort(contributions(), losses=lost_in(1, 3))
    cohort.sum(lambda one: one.delta)
    with pytest.raises(
        AggregationError, match=r"clients \[3\] were lost after the first sum .* begin a new round"
    ) as found:
        cohort.sum(lambda one: one.delta)
    assert not isinstance(found.value, ClientsLost)


def test_who_is_lost_after_its_words_came_counts() -> None:
    cohort = SecureCohort(contributions(), losses=lambda number: Losses(answer=frozenset({0, 6})))
    assert same(cohort.sum(lambda one: one.delta), LocalCohort(contributions()).sum(lambda one: one.delta))


@pytest.mark.parametrize(("value", "message"), [
    (torch.tensor([math.nan]), "client 2 brings a value that is not finite into the sum of 'w'"),
    (torch.zeros(2), r"clients 1 and 2 send different tensors: 'w' is float32 \[1\] and float32 \[2\]"),
])  # fmt: skip
def test_terms_that_cannot_be_added_are_named_as_by_the_plain_cohort(value: torch.Tensor, message: str) -> None:
    cohort = SecureCohort([Contribution(1, {"w": torch.zeros(1)}), Contribution(2, {"w": value})])
    with pytest.raises(AggregationError, match=message):
        cohort.sum(lambda one: one.delta)


def test_the_server_passes_results_on() -> None:
    cohort = SecureCohort(contributions(), "uniform", population=40)
    assert (cohort.population, cohort.clients) == (40, tuple(range(NUM_CLIENTS)))
    assert cohort.weights.tolist() == pytest.approx([1 / 7] * 7)
    assert cohort.on_server(lambda a, b: a + b, 1, 2) == 3
    assert cohort.share(torch.zeros(3)).shape == (3,)
    assert cohort.traffic == (0, 12)
