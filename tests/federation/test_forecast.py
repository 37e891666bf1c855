"""What is foretold of a run is what its round loop does, and memory counts every tensor that is kept."""

from __future__ import annotations

import pytest
import torch
from tiny_federation import CLIENTS, PARAMS, begin, federation, finish

from fedcmp.aggregation import Aggregator, Cohort, Mean, Sgd
from fedcmp.aggregation.contribution import num_bytes
from fedcmp.aggregation.parts import Fused, State
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.exact import PILE
from fedcmp.distributed.team import Topology
from fedcmp.errors import FedcmpError
from fedcmp.federation import forecast as forecasts
from fedcmp.federation.forecast import forecast, training_memory
from fedcmp.federation.groups import train_round
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel
from fedcmp.optimizer import OptimizerConfig
from fedcmp.types import Params

OUTLINE = {name: value.to("meta") for name, value in PARAMS.items()}


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedcmp"])
def test_rounds_and_clients_are_those_of_the_loop(llm: LanguageModel, method: str) -> None:
    whole = federation(llm, method)
    found = forecast(CLIENTS, whole.plan, whole.config.slots, Topology(), whole.aggregator, OUTLINE)
    state = finish(whole)
    records = whole.tracker.records[1:]
    for one, record in zip(found.rounds, records, strict=True):
        assert one.num_clients == sum(record.get(f"client/{k}/accepted", False) for k in range(3))
        for key in ("bytes/up", "bytes/down", "bytes/diagnostics"):
            assert record[key] == one.most[key] or (method == "fedcmp" and record[key] <= one.most[key])
    for number, client in enumerate(found.clients):
        samples, steps = (
            [record.get(f"client/{number}/{what}", 0) for record in records] for what in ("samples", "steps")
        )
        told = (len(CLIENTS[number]), sum(steps), sum(samples), sum(map(bool, samples)))
        assert (client.held, client.steps, client.samples, client.rounds) == told
    assert found.num_samples == state.samples_seen == sum(one.num_samples for one in found.rounds)
    assert found.share_used == state.samples_seen / 32


def test_groups_are_assigned_as_in_the_loop(llm: LanguageModel) -> None:
    whole = federation(llm)
    found = forecast(CLIENTS, whole.plan, 1, Topology(4, 2), whole.aggregator, None)
    assert [group.ranks for group in found.groups] == [(0, 1), (2, 3)]
    assert sorted(client for group in found.groups for wave in group.waves for client in wave) == [0, 1, 2]
    assert {one.num_waves for one in found.rounds} == {3}
    assert (found.rounds[0].busiest, found.rounds[0].most) == (2, {})


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


class _Careless(Mean):
    """Computes with what is shared where only shapes may be."""

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        norms = cohort.share(cohort.gather(lambda one: {"norm": one.delta["linear_1.bias"].norm()}))["norm"]
        return Mean().fuse(cohort, params, {"norms": norms + torch.ones(3)})


def test_a_method_that_cannot_run_on_shapes_is_named(llm: LanguageModel) -> None:
    whole = federation(llm)
    with pytest.raises(FedcmpError, match="_Careless"):
        forecast(CLIENTS, whole.plan, 1, Topology(), Aggregator(_Careless(), Sgd()), OUTLINE)
