"""Plans are pure, use each sample once, and say when the data do not suffice."""

from __future__ import annotations

import pytest

from fedcmp.distributed.topology import Topology
from fedcmp.errors import DataError
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.sampling import deal_waves, plan_run, plan_waves

CLIENTS = [tuple(range(50)), tuple(range(50, 64)), tuple(range(64, 200))]


def used(plan) -> list[int]:
    return [i for one in plan.rounds for task in one.tasks for batch in task.batches for i in batch]


def test_one_pass_uses_each_sample_at_most_once() -> None:
    plan = plan_run(CLIENTS, FederationConfig(rounds=5, batch_size=4), seed=1)
    seen = used(plan)
    assert len(seen) == len(set(seen)) == plan.num_samples == 48 + 12 + 136
    assert plan.rounds[0].samples_before == 0
    assert plan == plan_run(CLIENTS, FederationConfig(rounds=5, batch_size=4), seed=1)
    assert plan != plan_run(CLIENTS, FederationConfig(rounds=5, batch_size=4), seed=2)


def test_clients_see_only_their_own_samples() -> None:
    plan = plan_run(CLIENTS, FederationConfig(rounds=3, batch_size=4, passes=2), seed=1)
    for one in plan.rounds:
        for task in one.tasks:
            assert all(index in CLIENTS[task.client_id] for batch in task.batches for index in batch)
            assert all(len(batch) == 4 for batch in task.batches)


def test_fixed_steps_and_partial_cohorts() -> None:
    config = FederationConfig(rounds=6, local_steps=1, batch_size=4, clients_per_round=2)
    plan = plan_run(CLIENTS, config, seed=0)
    assert all(len(one.tasks) <= 2 and all(len(t.batches) == 1 for t in one.tasks) for one in plan.rounds)
    assert len({tuple(t.client_id for t in one.tasks) for one in plan.rounds}) > 1


def test_too_few_samples_and_too_many_rounds_are_errors() -> None:
    with pytest.raises(DataError, match="client 1 has 3 samples, fewer than one batch"):
        plan_run([(0, 1, 2, 3), (4, 5, 6)], FederationConfig(batch_size=4), seed=0)
    with pytest.raises(DataError, match=r"round 2 of federation\.rounds=2; at most 1 rounds"):
        plan_run([(0, 1, 2, 3)], FederationConfig(rounds=2, local_steps=1, batch_size=4), seed=0)


def test_waves_take_long_clients_first() -> None:
    tasks = plan_run(CLIENTS, FederationConfig(rounds=1, batch_size=4), seed=0).rounds[0].tasks
    waves = plan_waves(tasks, slots=2)
    assert [[task.client_id for task in wave] for wave in waves] == [[2, 0], [1]]


def test_waves_are_dealt_to_the_group_with_least_to_do() -> None:
    tasks = plan_run(CLIENTS, FederationConfig(rounds=1, batch_size=4), seed=0).rounds[0].tasks

    def clients(slots: int, topology: Topology) -> list[list[list[int]]]:
        return [[[t.client_id for t in w] for w in waves] for waves in deal_waves(tasks, slots, topology)]

    assert clients(1, Topology(2)) == [[[2]], [[0], [1]]]  # 34 steps beside 12 + 3
    assert clients(2, Topology(4, 2)) == [[[2, 0]], [[1]]]
    assert clients(3, Topology(2)) == [[[2, 0, 1]], []]
