"""Laws that every method obeys: pure, repeatable, resumable, and the same on ranks that see no sums."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from samples_of_clients import SHAPES, contribution, random_params

from fedcmp.aggregation.contribution import Contribution, MappedCohort
from fedcmp.aggregation.diagnostics import cohort_cosines
from fedcmp.aggregation.parts import Aggregated
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort

by_name = pytest.mark.parametrize("name", sorted(PRESETS))


def contributions(round_: int = 0, num: int = 6) -> list[Contribution]:
    return [contribution(client, round_) for client in range(num)]


def rounds(name: str, num: int, state=None, params=None, first: int = 0, order=lambda c: c) -> Aggregated:
    aggregator = build_aggregator(AggregatorConfig(name))
    params = random_params(1) if params is None else params
    state = aggregator.init(params) if state is None else state
    result = None
    for index in range(first, first + num):
        result = aggregator.aggregate(LocalCohort(order(contributions(index))), params, state)
        params, state = result.params, result.state
    assert result is not None
    return result


assert_same_bits = partial(torch.testing.assert_close, rtol=0, atol=0)


@by_name
def test_inputs_are_untouched(name: str) -> None:
    aggregator = build_aggregator(AggregatorConfig(name))
    params = random_params(1)
    state = rounds(name, 1).state
    clients = contributions(1)
    before = copy.deepcopy((params, state, clients))
    aggregator.aggregate(LocalCohort(clients), params, state)
    assert_same_bits(before[0], params)
    assert_same_bits(before[1], state)
    for old, new in zip(before[2], clients, strict=True):
        for part in ("delta", "halfway", "evidence", "message"):
            assert_same_bits(getattr(old, part), getattr(new, part))


@by_name
def test_it_repeats_bit_by_bit_in_any_order_of_clients(name: str) -> None:
    once, again = rounds(name, 3), rounds(name, 3)
    turned = rounds(name, 3, order=lambda clients: clients[::-1])
    for other in (again, turned):
        assert_same_bits(once.params, other.params)
        assert_same_bits(once.state, other.state)
        assert once.metrics == other.metrics
    assert {key: tuple(value.shape) for key, value in once.params.items()} == SHAPES
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in once.params.values())
    assert once.metrics["aggregator/delta_norm"] > 0 < once.metrics["aggregator/step_norm"]
    assert 0 <= once.metrics["aggregator/energy_kept"] <= 1


@by_name
def test_a_saved_state_goes_on_as_if_nothing_had_happened(name: str) -> None:
    half = rounds(name, 2)
    torch.save({"params": half.params, "state": half.state}, file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_same_bits(rounds(name, 4).params, rounds(name, 2, loaded["state"], loaded["params"], first=2).params)


@by_name
def test_clients_that_say_the_same_count_as_one(name: str) -> None:
    """The second half of the steps repeats the first, so that nothing looks like noise."""
    aggregator, params = build_aggregator(AggregatorConfig(name)), random_params(1)
    one = contribution(0)
    one = replace(one, halfway={key: value / 2 for key, value in one.delta.items()})
    many = [replace(one, client_id=client, num_samples=3 + client) for client in range(7)]
    least = [replace(one, client_id=client) for client in range(aggregator.fuse.least_clients)]
    few = aggregator.aggregate(LocalCohort(least), params, aggregator.init(params))
    together = aggregator.aggregate(LocalCohort(many), params, aggregator.init(params))
    for key in SHAPES:
        torch.testing.assert_close(together.params[key], few.params[key], rtol=1e-5, atol=1e-6)
    assert together.metrics["aggregator/energy_kept"] == pytest.approx(1.0)


@by_name
def test_weights_count_where_a_fuse_says_so(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name)), random_params(1)
    several = contributions()
    other = [replace(several[0], num_samples=40 * several[0].num_samples), *several[1:]]
    one, two = (aggregator.aggregate(LocalCohort(each), params, aggregator.init(params)) for each in (several, other))
    moved = any(not torch.equal(value, two.params[key]) for key, value in one.params.items())
    assert moved == aggregator.fuse.weighted, "else the guard's trust, which is weights, would do nothing"


@by_name
def test_no_update_moves_nothing_at_first(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name)), random_params(1)
    zeros = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    still = [replace(contribution(k), delta=zeros, halfway=zeros, message=zeros) for k in range(6)]
    assert_same_bits(aggregator.aggregate(LocalCohort(still), params, aggregator.init(params)).params, params)


@pytest.mark.parametrize(("deltas", "kept", "cosines"), [
    ([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], 5 / 9, [0.5**0.5, 0.0, 0.0]),  # pairs 01, 02, 12
    ([[1.0, 0.0], [-1.0, 0.0]], 0.0, [-1.0]),
    ([[0.0, 0.0]], 1.0, []),
])  # fmt: skip
def test_energy_cosines_and_oscillation_by_hand(deltas: list, kept: float, cosines: list) -> None:
    clients = [Contribution(k, {"a": torch.tensor(a), "b": torch.tensor(b)}) for k, (*a, b) in enumerate(deltas)]
    aggregator, params = build_aggregator(AggregatorConfig("fedavg")), {"a": torch.zeros(1), "b": torch.zeros(())}
    there, state, metrics = aggregator.aggregate(LocalCohort(clients), params, aggregator.init(params))
    assert metrics["aggregator/energy_kept"] == pytest.approx(kept)
    assert metrics.get("aggregator/cosines", []) == pytest.approx(cosines, abs=1e-4)
    if cosines:
        assert metrics["aggregator/cosine"] == pytest.approx(sum(cosines) / len(cosines))
        assert metrics["aggregator/cosine_min"] == pytest.approx(min(cosines), abs=1e-6)
    back = aggregator.aggregate(LocalCohort([one.scaled(-1.0) for one in clients]), there, state).metrics
    assert back["aggregator/oscillation"] == pytest.approx(-1.0 if kept and cosines else 0.0)
    if len(deltas) == 3:  # a sample of a large cohort, and none
        assert len(cohort_cosines(LocalCohort(clients), params, most=2)["aggregator/cosines"]) == 1
        assert cohort_cosines(LocalCohort(clients), params, most=0) == {}


class Recorded(MappedCohort):
    """The server's side: notes every call, and what was shared."""

    def __init__(self, inner) -> None:
        super().__init__(inner, lambda contribution: contribution)
        self.calls, self.shared = [], []

    def sum(self, fn, weights=None):
        found = super().sum(fn, weights)
        self.calls.append(("sum", sorted(found)))
        return found

    def gather(self, fn, clients=None):
        self.calls.append(("gather", clients))
        return super().gather(fn, clients)

    def on_server(self, fn, *args):
        self.calls.append("on_server")
        return super().on_server(fn, *args)

    def share(self, value):
        self.calls.append("share")
        self.shared.append(value)
        return value


class Follower(Recorded):
    """Another rank: sums hold nothing useful, functions for the server do not run, only what is shared arrives."""

    def sum(self, fn, weights=None):
        return {name: torch.full_like(value, torch.nan) for name, value in super().sum(fn, weights).items()}

    def gather(self, fn, clients=None):
        super().gather(fn, clients)
        return {}

    def on_server(self, fn, *args):
        self.calls.append("on_server")

    def share(self, value):
        self.calls.append("share")
        return self.shared.pop(0)


@by_name
def test_other_ranks_follow_without_knowing_the_sums(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name, clip_norm=0.3)), random_params(1)
    state = aggregator.init(params)
    server = Recorded(LocalCohort(contributions()))
    first = aggregator.aggregate(server, params, state)
    follower = Follower(LocalCohort(contributions()))
    follower.shared = list(server.shared)
    second = aggregator.aggregate(follower, params, {**state, "fuse": {}, "server": {}, "diagnostics": {}})
    assert follower.calls == server.calls
    assert not follower.shared
    assert set(first.params) == set(SHAPES)
    assert_same_bits(first.params, second.params)
    assert first.metrics == second.metrics


@by_name
def test_methods_that_say_sums_only_gather_nothing(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name, pairwise=0)), random_params(1)
    cohort = Recorded(LocalCohort(contributions()))
    aggregator.aggregate(cohort, params, aggregator.init(params))
    assert aggregator.sums_only == all(call[0] != "gather" for call in cohort.calls)
