"""Plans are pure, use each sample once, and say when the data do not suffice; what is foretold of memory and groups."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_federation import CLIENTS as TINY
from tiny_federation import PARAMS, begin, federation, finish

from fedcmp.aggregation import Aggregator, Cohort, Mean, Sgd
from fedcmp.aggregation.contribution import num_bytes
from fedcmp.aggregation.parts import Fused, State
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.exact import PILE
from fedcmp.distributed.team import Topology
from fedcmp.errors import FedcmpError, PlanError
from fedcmp.federation import forecast as forecasts
from fedcmp.federation.forecast import forecast, training_memory
from fedcmp.federation.groups import train_round
from fedcmp.federation.sampling import RunPlan, assign_waves, plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel
from fedcmp.optimizer import OptimizerConfig
from fedcmp.types import Params

CLIENTS = [tuple(range(50)), tuple(range(50, 64)), tuple(range(64, 200))]


def owners(*sizes: int) -> list[tuple[int, ...]]:
    """Clients of so many samples."""
    ends = itertools.accumulate(sizes, initial=0)
    return [tuple(range(begin, end)) for begin, end in itertools.pairwise(ends)]


def made(clients: list[tuple[int, ...]], seed: int = 0, **settings: Any) -> RunPlan:
    return plan_run(clients, FederationConfig(**settings), seed)


@pytest.mark.parametrize("settings", [
    {"rounds": 5}, {"rounds": 3, "passes": 2}, {"rounds": 6, "local_steps": 1, "clients_per_round": 2},
    {"rounds": 30, "local_steps": 1, "dropout": 0.3}, {"rounds": 3, "dropout": 0.4},
], ids=str)  # fmt: skip
def test_each_client_sees_its_own_samples_once_a_pass_in_whole_batches(settings: dict) -> None:
    plan, again, other = (made(CLIENTS, seed, batch_size=4, **settings) for seed in (1, 1, 2))
    assert plan == again != other
    seen = Counter(i for one in plan.rounds for task in one.tasks for batch in task.batches for i in batch)
    assert sum(seen.values()) == plan.num_samples == sum(one.num_samples for one in plan.rounds)
    assert max(seen.values()) == settings.get("passes", 1)
    for one in plan.rounds:
        assert 1 <= len(one.tasks) <= settings.get("clients_per_round", 3)
        assert settings.get("dropout") or one.dropped == ()
        for task in one.tasks:
            assert settings.get("local_steps", len(task.batches)) == len(task.batches)
            assert all(len(batch) == 4 and {*batch} <= {*CLIENTS[task.client_id]} for batch in task.batches)
    assert settings != {"rounds": 5} or plan.num_samples == 48 + 12 + 136


@pytest.mark.parametrize(("num_clients", "drawn", "rounds"), [(100, 10, 50), (8, 1, 40), (8, 2, 44)])
def test_a_cohort_is_drawn_from_those_that_have_samples_left(num_clients: int, drawn: int, rounds: int) -> None:
    plan = made(owners(*[44] * num_clients), rounds=rounds, batch_size=4, clients_per_round=drawn)
    cohorts = [len(one.tasks) for one in plan.rounds]
    short = [number for number, size in enumerate(cohorts) if size < drawn]
    assert max(cohorts) == drawn
    # only the last rounds, where fewer clients than that have anything left
    assert short == list(range(rounds - len(short), rounds))
    assert len(short) <= 3
    assert plan.num_samples > 0.9 * 44 * num_clients * min(1.0, drawn * rounds / num_clients)


def test_samples_of_owners_of_all_sizes_last_for_all_rounds() -> None:
    """As in the study's scenario quantity, where with this seed no client had samples left for the last round."""
    clients = owners(*(16 * size for size in (4, 4, 6, 10, 20, 40, 68, 100)))
    plan = made(clients, 5, rounds=16, batch_size=16, clients_per_round=6, dropout=0.1)
    assert len(plan.rounds) == 16
    assert sum(len(one.tasks) + len(one.dropped) for one in plan.rounds) > 0.85 * 6 * 16


@pytest.mark.parametrize("seed", range(4))
def test_as_many_rounds_as_there_are_batches_fit_and_so_does_what_an_error_proposes(seed: int) -> None:
    """Owners of two to eight batches of one sample, and cohorts of fewer than all of them."""
    sizes = np.random.default_rng(seed).integers(2, 9, size=3 + seed % 4).tolist()
    clients, options, rounds = owners(*sizes), {"batch_size": 1, "clients_per_round": 1 + seed % 2}, sum(sizes)
    assert [one.num_samples for one in made(clients, seed, rounds=rounds, **options).rounds] == [1] * rounds
    for config in (
        FederationConfig(rounds=rounds, local_steps=2, **options),
        FederationConfig(rounds=50, batch_size=1 + seed % 2, dropout=0.3 * (seed % 3)),
        FederationConfig(rounds=12, batch_size=16),  # no client has a batch
    ):
        with pytest.raises(PlanError) as refused:
            plan_run(clients, config, seed)
        assert refused.value.overrides in str(refused.value)
        found = re.findall(r"federation\.(\w+)=(\d+)", refused.value.overrides)
        changed = {key: int(value) for key, value in found}
        assert changed
        assert plan_run(clients, replace(config, **changed), seed).rounds


@pytest.mark.parametrize(("clients", "settings", "overrides", "words"), [
    (owners(10, 12), {"batch_size": 16}, "federation.batch_size=5 federation.rounds=2", "client 0 (north) has 10"),
    (owners(4, 3), {"batch_size": 4, "rounds": 1}, "federation.batch_size=3", "client 1 (south) has 3"),
    (owners(4), {"batch_size": 4, "rounds": 2, "local_steps": 1}, "", "round 2 of federation.rounds=2"),
    (owners(8, 8, 8, 8), {"batch_size": 8, "rounds": 9, "clients_per_round": 1}, "", "round 5 of federation.rounds=9"),
])  # fmt: skip
def test_an_error_names_the_client_or_the_round_and_what_fits(
    clients: list, settings: dict, overrides: str, words: str
) -> None:
    names = ["north", "south", "east", "west"][: len(clients)]
    with pytest.raises(PlanError) as refused:
        plan_run(clients, FederationConfig(**settings), 0, names=names)
    assert words in str(refused.value)
    assert overrides in ("", refused.value.overrides)


def test_captions_alike_in_length_share_a_batch_and_a_step() -> None:
    config, lengths = FederationConfig(rounds=3, batch_size=4), [37 * sample % 101 for sample in range(200)]
    padding = {}
    plans = {name: plan_run(CLIENTS, config, 0, own) for name, own in (("plain", None), ("grouped", lengths))}
    for name, plan in plans.items():
        tasks = [task for one in plan.rounds for task in one.tasks]
        batches = [[lengths[i] for i in batch] for task in tasks for batch in task.batches]
        padding[name] = sum(len(batch) * max(batch) - sum(batch) for batch in batches)
        plans[name] = [task._replace(batches=tuple(sorted(itertools.chain(*task.batches)))) for task in tasks]
    assert padding["grouped"] < 0.3 * padding["plain"]
    assert plans["plain"] == plans["grouped"], "of the same samples"
    first = plan_run(CLIENTS, config, 0, lengths).rounds[0].tasks
    steps = [[max(lengths[i] for i in batch) for batch in task.batches] for task in first]
    places = [sorted(range(len(one)), key=one.__getitem__) for one in steps]
    assert all(one == places[0] for one in places if len(one) == len(places[0]))
    assert any(one != sorted(one) for one in places)


def test_clients_drop_out_and_go_on_where_they_stopped() -> None:
    """Batches come in the same order as without drop-outs, none is lost."""

    def batches(dropout: float) -> list:
        plan = made(CLIENTS, 3, rounds=30, local_steps=1, batch_size=4, dropout=dropout)
        return [batch for one in plan.rounds for task in one.tasks if task.client_id == 2 for batch in task.batches]

    some = batches(0.5)
    assert 0 < len(some) < 30
    assert some == batches(0.0)[: len(some)]
    plan = made(owners(*[100] * 10), rounds=40, local_steps=1, batch_size=1, dropout=0.3)
    assert sum(len(one.dropped) for one in plan.rounds) == pytest.approx(0.3 * 400, rel=0.25)
    plan = made(owners(*[400] * 20), 1, rounds=30, batch_size=4, dropout=0.4)
    assert plan.num_samples > 0.9 * 8000, "what drop-outs leave is used in other rounds"
    plan = made(owners(*[100] * 4), 2, rounds=30, local_steps=1, batch_size=1, dropout=0.95, min_clients=3)
    assert min(len(one.tasks) for one in plan.rounds) == 3, "some always stay"
    plan = made(owners(2, 100), rounds=20, local_steps=1, batch_size=1, dropout=0.5)
    last = max(one.round for one in plan.rounds if any(task.client_id == 0 for task in one.tasks))
    assert last < 15, "by then it has used both of its samples"
    assert all(0 not in one.dropped for one in plan.rounds[last + 1 :]), "one that rests has not dropped out"


@pytest.mark.parametrize(("slots", "topology", "expected"), [
    (2, Topology(), [[[2, 0], [1]]]),  # long clients first
    (1, Topology(2), [[[2]], [[0], [1]]]),  # 34 steps beside 12 + 3
    (2, Topology(4, 2), [[[2, 0]], [[1]]]),
    (3, Topology(2), [[[2, 0, 1]], []]),
])  # fmt: skip
def test_waves_go_to_the_group_with_least_to_do(slots: int, topology: Topology, expected: list) -> None:
    tasks = made(CLIENTS, rounds=1, batch_size=4).rounds[0].tasks
    found = [[[t.client_id for t in w] for w in waves] for waves in assign_waves(tasks, slots, topology)]
    assert found == expected


OUTLINE = {name: value.to("meta") for name, value in PARAMS.items()}


@pytest.mark.parametrize("method", ["fedcmp", "scaffold", "fedadam"])
def test_what_is_kept_is_counted(llm: LanguageModel, method: str) -> None:
    whole = federation(llm, method, {"keep_local_state": True})
    contributions, *_ = train_round(whole.field, whole, begin(whole), whole.plan.rounds[0])
    memory = training_memory(OUTLINE, whole.aggregator, whole.config, whole.optimizer, busiest=3, population=3)
    parts = {part.what.split(",")[0]: part for part in memory}
    sent = [(one.delta, one.halfway, one.evidence, one.message) for one in contributions]
    assert parts["updates of 3 clients"].server == num_bytes(sent)
    state, kept = finish(whole), parts["global projector"]
    steps = 3 * 4 * len(PARAMS)  # AdamW counts its steps at every tensor
    held = num_bytes((state.params, state.aggregator, list(state.local.values()))) - steps
    assert held <= (kept.server or 0) <= 1.3 * held
    assert kept.others == num_bytes(PARAMS)


def test_sums_are_foretold_by_the_largest_of_them_and_by_how_many_terms_are_held(monkeypatch) -> None:
    def held(busiest: int, name: str = "fedavg", **fuse: int) -> int | None:
        method = build_aggregator(AggregatorConfig(name, fuse=fuse))
        parts = training_memory(OUTLINE, method, FederationConfig(), OptimizerConfig(), busiest=busiest, population=9)
        return next(part.server for part in parts if part.what.startswith("sums over clients"))

    assert held(8, "geometric-median", max_iterations=1) == held(8, "geometric-median", max_iterations=9)
    size = 2 * num_bytes(OUTLINE)
    assert held(8) == 9 * size
    monkeypatch.setattr(forecasts, "HELD_BYTES", 0)
    assert (held(8), held(2)) == ((PILE + 1) * size, 3 * size)


def test_groups_are_assigned_as_in_the_loop_and_a_method_that_cannot_run_on_shapes_is_named(llm: LanguageModel) -> None:
    whole = federation(llm)
    found = forecast(TINY, whole.plan, 1, Topology(4, 2), whole.aggregator, None)
    assert [group.ranks for group in found.groups] == [(0, 1), (2, 3)]
    assert sorted(client for group in found.groups for wave in group.waves for client in wave) == [0, 1, 2]
    assert {one.num_waves for one in found.rounds} == {3}
    assert (found.rounds[0].busiest, found.rounds[0].most) == (2, {})

    class Careless(Mean):
        """Computes with what is shared where only shapes may be."""

        def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
            norms = cohort.share(cohort.gather(lambda one: {"norm": one.delta["linear_1.bias"].norm()}))["norm"]
            return Mean().fuse(cohort, params, {"norms": norms + torch.ones(3)})

    with pytest.raises(FedcmpError, match="Careless"):
        forecast(TINY, whole.plan, 1, Topology(), Aggregator(Careless(), Sgd()), OUTLINE)
