"""Plans are pure, use each sample once, and say when the data do not suffice."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from fedcmp.distributed.team import Topology
from fedcmp.errors import DataError, PlanError
from fedcmp.federation.sampling import assign_waves, plan_run
from fedcmp.federation.settings import FederationConfig

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


@pytest.mark.parametrize(("num_clients", "drawn", "rounds"), [(100, 10, 50), (100, 25, 24), (8, 1, 40), (8, 2, 44)])
def test_a_cohort_is_drawn_from_those_that_have_samples_left(num_clients: int, drawn: int, rounds: int) -> None:
    clients = [tuple(range(44 * client, 44 * client + 44)) for client in range(num_clients)]
    plan = plan_run(clients, FederationConfig(rounds=rounds, batch_size=4, clients_per_round=drawn), seed=0)
    cohorts = [len(one.tasks) for one in plan.rounds]
    short = [number for number, size in enumerate(cohorts) if size < drawn]
    assert max(cohorts) == drawn
    # only the last rounds, where fewer clients than that have anything left
    assert short == list(range(rounds - len(short), rounds))
    assert len(short) <= 3
    seen = used(plan)
    assert len(seen) == len(set(seen)) > 0.9 * 44 * num_clients * min(1.0, drawn * rounds * 11 / (11 * num_clients))


@pytest.mark.parametrize("seed", range(4, 6))
def test_samples_of_owners_of_all_sizes_last_for_all_rounds(seed: int) -> None:
    """As in the study's scenario quantity, where with seed 5 no client had samples left for the last round."""
    sizes, ends = [4, 4, 6, 10, 20, 40, 68, 100], [0]
    for size in sizes:
        ends.append(ends[-1] + 16 * size)
    clients = [tuple(range(begin, end)) for begin, end in itertools.pairwise(ends)]
    plan = plan_run(clients, FederationConfig(rounds=16, batch_size=16, clients_per_round=6, dropout=0.1), seed)
    assert len(plan.rounds) == 16
    assert sum(len(one.tasks) + len(one.dropped) for one in plan.rounds) > 0.85 * 6 * 16


def test_whoever_is_drawn_trains_and_the_error_counts_the_rounds() -> None:
    few = [tuple(range(8 * client, 8 * client + 8)) for client in range(4)]
    config = FederationConfig(rounds=9, batch_size=8, clients_per_round=1)
    with pytest.raises(DataError, match=r"for round 5 of federation\.rounds=9.*federation\.rounds=4"):
        plan_run(few, config, seed=0)
    plan = plan_run(few, FederationConfig(rounds=4, batch_size=8, clients_per_round=1), seed=0)
    assert sorted(one.tasks[0].client_id for one in plan.rounds) == [0, 1, 2, 3]


def few_batches(seed: int) -> tuple[list[tuple[int, ...]], dict[str, int]]:
    """Owners of two to eight batches of one sample, and cohorts of fewer than all of them."""
    sizes = np.random.default_rng(seed).integers(2, 9, size=3 + seed % 4).tolist()
    clients = [tuple(range(100 * client, 100 * client + size)) for client, size in enumerate(sizes)]
    return clients, {"batch_size": 1, "clients_per_round": 1 + seed % 2}


@pytest.mark.parametrize("seed", range(6))
def test_as_many_rounds_as_there_are_batches_fit(seed: int) -> None:
    clients, options = few_batches(seed)
    rounds = sum(map(len, clients))
    plan = plan_run(clients, FederationConfig(rounds=rounds, **options), seed)
    assert [one.num_samples for one in plan.rounds] == [1] * rounds


@pytest.mark.parametrize("seed", range(6))
def test_every_proposal_of_an_error_fits(seed: int) -> None:
    clients, options = few_batches(seed)
    cases = [
        FederationConfig(rounds=sum(map(len, clients)), local_steps=2, **options),
        FederationConfig(rounds=50, batch_size=1 + seed % 2, dropout=0.3 * (seed % 3)),
        FederationConfig(rounds=12, batch_size=16),  # no client has a batch
    ]
    for config in cases:
        with pytest.raises(PlanError) as refused:
            plan_run(clients, config, seed)
        told = re.findall(
            r"(?:federation\.(?:rounds|batch_size)=\d+ ?)+", str(refused.value).split("; set ")[1]
        )
        assert refused.value.overrides in told
        for words in told:
            changed = {key: int(value) for key, value in re.findall(r"federation\.(\w+)=(\d+)", words)}
            assert plan_run(clients, replace(config, **changed), seed).rounds


def test_a_small_set_gets_a_few_rounds_of_a_few_rows() -> None:
    with pytest.raises(PlanError) as refused:
        plan_run([range(10), range(10, 22)], FederationConfig(rounds=12, batch_size=16), 0, names=["north", "south"])
    assert refused.value.overrides == "federation.batch_size=5 federation.rounds=2"
    assert "client 0 (north) has 10 samples" in str(refused.value)


def test_clients_drop_out_and_their_samples_wait() -> None:
    config = FederationConfig(rounds=40, local_steps=1, batch_size=1, dropout=0.3)
    clients = [tuple(range(100 * client, 100 * client + 100)) for client in range(10)]
    plan = plan_run(clients, config, seed=0)
    seen = used(plan)
    assert len(seen) == len(set(seen)) == plan.num_samples
    for one in plan.rounds:
        trained = {task.client_id for task in one.tasks}
        assert trained.isdisjoint(one.dropped)
        assert trained | set(one.dropped) == set(range(10))
    dropped = sum(len(one.dropped) for one in plan.rounds)
    assert dropped == pytest.approx(0.3 * 400, rel=0.25)
    assert plan == plan_run(clients, config, seed=0)
    assert [one.dropped for one in plan.rounds] != [one.dropped for one in plan_run(clients, config, seed=1).rounds]


def test_captions_alike_in_length_share_a_batch_and_a_step() -> None:
    config = FederationConfig(rounds=3, batch_size=4)
    lengths = [37 * sample % 101 for sample in range(200)]
    plain, grouped = plan_run(CLIENTS, config, 0), plan_run(CLIENTS, config, 0, lengths)

    def padding(plan) -> int:
        batches = [[lengths[i] for i in batch] for one in plan.rounds for task in one.tasks for batch in task.batches]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(grouped) < 0.3 * padding(plain)
    for one, other in zip(plain.rounds, grouped.rounds, strict=True):
        for task, same in zip(one.tasks, other.tasks, strict=True):
            assert sorted(i for batch in task.batches for i in batch) == sorted(i for b in same.batches for i in b)
            assert task._replace(batches=()) == same._replace(batches=())
    steps = [[max(lengths[i] for i in batch) for batch in task.batches] for task in grouped.rounds[0].tasks]
    places = [sorted(range(len(one)), key=one.__getitem__) for one in steps]
    alike = [one for one in places if len(one) == len(places[0])]
    assert all(one == alike[0] for one in alike)
    assert any(one != sorted(one) for one in places)


def test_a_client_goes_on_where_it_dropped_out() -> None:
    """Batches come in the same order as without drop-outs, none is lost."""
    full = FederationConfig(rounds=30, local_steps=1, batch_size=4)
    faulty = FederationConfig(rounds=30, local_steps=1, batch_size=4, dropout=0.5)

    def batches(config: FederationConfig) -> list:
        tasks = [task for one in plan_run(CLIENTS, config, seed=3).rounds for task in one.tasks if task.client_id == 2]
        return [batch for task in tasks for batch in task.batches]

    some = batches(faulty)
    assert 0 < len(some) < 30
    assert some == batches(full)[: len(some)]


def test_steps_are_spread_over_the_rounds_in_which_clients_report() -> None:
    clients = [tuple(range(1000 * client, 1000 * client + 400)) for client in range(20)]
    plan = plan_run(clients, FederationConfig(rounds=30, batch_size=4, dropout=0.4), seed=1)
    assert plan.num_samples > 0.9 * 8000, "what drop-outs leave is used in other rounds"


@pytest.mark.parametrize("least", [1, 3])
def test_some_clients_always_stay(least: int) -> None:
    config = FederationConfig(rounds=30, local_steps=1, batch_size=1, dropout=0.95, min_clients=least)
    clients = [tuple(range(100 * client, 100 * client + 100)) for client in range(4)]
    counts = [len(one.tasks) for one in plan_run(clients, config, seed=2).rounds]
    assert min(counts) == least


def test_who_rests_is_not_counted_as_dropped() -> None:
    clients = [(0, 1), tuple(range(2, 102))]
    plan = plan_run(clients, FederationConfig(rounds=20, local_steps=1, batch_size=1, dropout=0.5), seed=0)
    last = max(one.round for one in plan.rounds if any(task.client_id == 0 for task in one.tasks))
    assert last < 15, "by then it has used both of its samples"
    assert all(0 not in one.dropped for one in plan.rounds[last + 1 :])


def test_without_drop_outs_nothing_changes() -> None:
    assert all(one.dropped == () for one in plan_run(CLIENTS, FederationConfig(rounds=3, batch_size=4), seed=0).rounds)


def test_too_few_samples_and_too_many_rounds_are_errors() -> None:
    with pytest.raises(DataError, match="client 1 has 3 samples"):
        plan_run([(0, 1, 2, 3), (4, 5, 6)], FederationConfig(batch_size=4), seed=0)
    with pytest.raises(DataError, match=r"round 2 of federation\.rounds=2.*federation\.rounds=1"):
        plan_run([(0, 1, 2, 3)], FederationConfig(rounds=2, local_steps=1, batch_size=4), seed=0)


def test_waves_are_dealt_to_the_group_with_least_to_do() -> None:
    tasks = plan_run(CLIENTS, FederationConfig(rounds=1, batch_size=4), seed=0).rounds[0].tasks

    def clients(slots: int, topology: Topology) -> list[list[list[int]]]:
        return [[[t.client_id for t in w] for w in waves] for waves in assign_waves(tasks, slots, topology)]

    assert clients(1, Topology(2)) == [[[2]], [[0], [1]]]  # 34 steps beside 12 + 3
    assert clients(2, Topology(4, 2)) == [[[2, 0]], [[1]]]
    assert clients(3, Topology(2)) == [[[2, 0, 1]], []]
