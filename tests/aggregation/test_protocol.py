"""Every method as another rank than the server sees it: the same calls in the same order, no use of their results."""

from __future__ import annotations

import pytest
import torch
from samples_of_clients import SHAPES, random_params
from test_laws import assert_same_bits, contributions

from fedcmp.aggregation.contribution import MappedCohort
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort


class Recorded(MappedCohort):
    """The server's side: notes every call, and what was shared."""

    def __init__(self, inner, shared=()) -> None:
        super().__init__(inner, lambda contribution: contribution)
        self.calls, self.shared = [], list(shared)

    def sum(self, fn, weights=None):
        found = super().sum(fn, weights)
        self.calls.append(("sum", sorted(found)))
        return found

    def gather(self, fn, clients=None):
        self.calls.append(("gather", clients))
        return super().gather(fn, clients)

    def on_server(self, fn, *args):
        self.calls.append(("on_server",))
        return super().on_server(fn, *args)

    def share(self, value):
        self.calls.append(("share",))
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
        self.calls.append(("on_server",))

    def share(self, value):
        self.calls.append(("share",))
        return self.shared.pop(0)


def local() -> LocalCohort:
    return LocalCohort(contributions(0))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_other_ranks_follow_without_knowing_the_sums(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name, clip_norm=0.3)), random_params(1)
    state = aggregator.init(params)
    server = Recorded(local())
    first = aggregator.aggregate(server, params, state)
    follower = Follower(local(), server.shared)
    second = aggregator.aggregate(follower, params, {**state, "fuse": {}, "server": {}, "diagnostics": {}})
    assert follower.calls == server.calls
    assert not follower.shared
    assert set(first.params) == set(SHAPES)
    assert_same_bits(first.params, second.params)
    assert first.metrics == second.metrics


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_methods_that_say_sums_only_gather_nothing(name: str) -> None:
    aggregator, params = build_aggregator(AggregatorConfig(name, pairwise=0)), random_params(1)
    cohort = Recorded(local())
    aggregator.aggregate(cohort, params, aggregator.init(params))
    assert aggregator.sums_only == all(call[0] != "gather" for call in cohort.calls)
