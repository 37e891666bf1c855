"""What is foretold of a run is what its round loop does, and memory counts every tensor that is kept."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_federation import CLIENTS, PARAMS, begin, federation

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import num_bytes
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.exact import PILE
from fedcmp.distributed.team import Topology
from fedcmp.federation import forecast as forecasts
from fedcmp.federation.forecast import forecast, training_memory
from fedcmp.federation.groups import train_round
from fedcmp.federation.loop import run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel
from fedcmp.optimizer import OptimizerConfig

OUTLINE = {name: value.to("meta") for name, value in PARAMS.items()}


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedcmp"])
def test_rounds_and_clients_are_those_of_the_loop(llm: LanguageModel, method: str) -> None:
    whole = federation(llm, method=method)
    found = forecast(CLIENTS, whole.plan, whole.config.slots, Topology(), whole.aggregator, OUTLINE)
    state = run(whole, begin(whole))
    records = whole.tracker.records[1:]
    assert len(found.rounds) == len(records)
    for one, record in zip(found.rounds, records, strict=True):
        assert one.num_clients == sum(record.get(f"client/{k}/accepted", False) for k in range(3))
        for key in ("bytes/up", "bytes/down", "bytes/diagnostics"):
            assert record[key] <= one.most[key]
            assert record[key] == one.most[key] or method == "fedcmp"
    for client in found.clients:
        assert client.held == len(CLIENTS[client.client])
        assert client.samples == sum(record.get(f"client/{client.client}/samples", 0) for record in records)
        assert client.steps == sum(record.get(f"client/{client.client}/steps", 0) for record in records)
        assert client.rounds == sum(f"client/{client.client}/samples" in record for record in records)
    assert found.num_samples == state.samples_seen == sum(one.num_samples for one in found.rounds)
    assert found.share_used == state.samples_seen / 32


def test_groups_are_dealt_as_the_loop_deals_them(llm: LanguageModel) -> None:
    whole = federation(llm)
    found = forecast(CLIENTS, whole.plan, 1, Topology(4, 2), whole.aggregator, None)
    assert [group.ranks for group in found.groups] == [(0, 1), (2, 3)]
    assert sorted(client for group in found.groups for wave in group.waves for client in wave) == [0, 1, 2]
    assert {one.num_waves for one in found.rounds} == {3}
    assert found.rounds[0].busiest == 2
    assert found.rounds[0].most == {}


@pytest.mark.parametrize("method", ["fedcmp", "scaffold", "fedadam"])
def test_what_is_kept_is_counted(llm: LanguageModel, method: str) -> None:
    whole = federation(llm, method=method)
    whole = dataclasses.replace(whole, config=dataclasses.replace(whole.config, keep_local_state=True))
    state = begin(whole)
    contributions, *_ = train_round(whole, state, whole.plan.rounds[0])
    parts = {
        part.what.split(",")[0]: part
        for part in training_memory(OUTLINE, whole.aggregator, whole.config, whole.optimizer, busiest=3, population=3)
    }
    sent = [(one.delta, one.halfway, one.evidence, one.message) for one in contributions]
    assert parts["updates of 3 clients"].server == num_bytes(sent)
    state = run(whole, state)
    steps = 3 * 4 * len(PARAMS)  # AdamW counts its steps at every tensor
    held = num_bytes((state.params, state.aggregator, list(state.local.values()))) - steps
    foretold = parts["global projector"].server
    assert foretold is not None
    assert held <= foretold <= 1.3 * held
    assert parts["global projector"].others == num_bytes(PARAMS)


def sums_held(method: Aggregator, busiest: int) -> int:
    parts = training_memory(OUTLINE, method, FederationConfig(), OptimizerConfig(), busiest=busiest, population=9)
    (found,) = (part.server for part in parts if part.what.startswith("sums over clients"))
    assert found is not None
    return found


def test_sums_are_foretold_by_the_largest_of_them_and_by_how_many_terms_are_held(monkeypatch) -> None:
    few, many = (
        build_aggregator(AggregatorConfig("geometric-median", fuse={"max_iterations": most})) for most in (1, 100)
    )
    assert sums_held(few, 8) == sums_held(many, 8), "one iteration after another"
    mean, size = build_aggregator(AggregatorConfig("fedavg")), 2 * num_bytes(OUTLINE)
    assert sums_held(mean, 8) == 9 * size
    monkeypatch.setattr(forecasts, "HELD_BYTES", 0)
    assert sums_held(mean, 8) == (PILE + 1) * size
    assert sums_held(mean, 2) == 3 * size
