"""The composition root: what it refuses before a model is loaded."""

from __future__ import annotations

import pytest

from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.wrappers import Normalised
from fedcmp.build import build_federation, check_cohorts, read_data
from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.federation.sampling import RunPlan, plan_run

CLIENTS = [tuple(range(32 * k, 32 * k + 32)) for k in range(4)]


def test_a_rule_that_needs_more_clients_than_a_round_has_is_named() -> None:
    few = ["federation.clients_per_round=3", "federation.rounds=2", "partition.clients=4", "aggregator=krum"]
    config = load_config(None, [*few, "aggregator.fuse.byzantine=0"])
    check_cohorts(config, plan_run(CLIENTS, config.federation, seed=0))
    config = load_config(None, [*few, "aggregator.fuse.byzantine=1"])
    with pytest.raises(
        ConfigError,
        match=r"aggregator\.name=krum needs at least 5 clients in a round, but round 1 has 3; raise "
        r"federation\.clients_per_round \(now 3\) or partition\.clients \(now 4\)",
    ):
        check_cohorts(config, plan_run(CLIENTS, config.federation, seed=0))


def test_fewer_clients_than_must_send_something_are_named_before_the_run() -> None:
    words = ["federation.rounds=2", "partition.clients=4", "federation.min_clients"]
    config = load_config(None, [*words[:-1], f"{words[-1]}=4"])
    check_cohorts(config, plan_run(CLIENTS, config.federation, seed=0))
    config = load_config(None, [*words[:-1], f"{words[-1]}=5"])
    with pytest.raises(
        ConfigError, match=r"federation\.min_clients=5 needs at least 5 clients in a round, but round 1 has 4; raise"
    ):
        check_cohorts(config, plan_run(CLIENTS, config.federation, seed=0))


def test_corrupted_captions_are_trained_on_and_nothing_else_is_touched() -> None:
    words = ["data.scenes_per_camera=8", "federation.batch_size=4", "federation.rounds=1", "partition.clients=4"]
    corrupt = ["partition.scenario=domain+quality", "partition.quality.kind=template"]
    clean, hurt = read_data(load_config(None, words)), read_data(load_config(None, [*words, *corrupt]))
    corrupted = {position for client in hurt.split.corrupted for position in client}
    assert len(corrupted) == 32
    for position, (before, after) in enumerate(zip(clean.train, hurt.train, strict=True)):
        assert (after.caption == "a picture") == (position in corrupted)
        assert (after.caption == before.caption) == (position not in corrupted)
    assert (hurt.val, hurt.test) == (clean.val, clean.test)
    assert (hurt.split.clients, hurt.plan) == (clean.split.clients, clean.plan)


def test_batches_of_captions_alike_in_length() -> None:
    words = ["data.scenes_per_camera=16", "federation.batch_size=4", "federation.rounds=1", "partition.clients=4"]
    plain, grouped = (
        read_data(load_config(None, [*words, f"federation.group_by_length={on}"])) for on in (False, True)
    )

    def padding(data) -> int:
        tasks = data.plan.rounds[0].tasks
        batches = [[len(data.train[i].caption) for i in batch] for task in tasks for batch in task.batches]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(grouped) < 0.6 * padding(plain)


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.7), ("adamw", 0.0)])
def test_fednova_knows_the_momentum_of_the_clients(optimizer: str, momentum: float) -> None:
    config = load_config(None, ["aggregator=fednova", f"optimizer.name={optimizer}", "optimizer.momentum=0.7"])
    parts = type("Parts", (), {"module": None, "fetch": len, "val_data": None})
    data = type("Data", (), {"plan": RunPlan((), 0, 8)})
    assert build_federation(config, data, parts, None, None, None).aggregator.fuse == Normalised(Mean(), momentum)
