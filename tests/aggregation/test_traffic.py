"""What a round will exchange, foretold from shapes, against what the cohort counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort

SHAPES = {
    "norm.weight": (9,),
    "norm.bias": (9,),
    "linear_1.weight": (5, 9),
    "linear_1.bias": (5,),
    "linear_2.weight": (3, 5),
    "linear_2.bias": (3,),
}
RANGES = {"fedcmp", "knots", "geometric-median"}
"""The data decide how much is sent: the rank of a basis, or the number of iterations."""
BYTES = {"bytes/up", "bytes/down", "bytes/diagnostics"}


def params(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def contribution(client: int) -> Contribution:
    """A client that recorded everything that a rule may ask for."""
    evidence = {}
    for layer in ("linear_1", "linear_2"):
        inputs = params(client + 40)[f"{layer}.weight"]
        rows = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
        evidence[layer] = rows.T @ rows
    delta = params(client)
    return Contribution(
        client,
        delta,
        halfway={name: value / 2 for name, value in delta.items()},
        evidence=evidence,
        message=params(client + 20),
        num_samples=3 + client,
        num_steps=2,
    )


def outline() -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}


def counted_and_foretold(config: AggregatorConfig, num_clients: int) -> list[dict[str, int]]:
    aggregator, start = build_aggregator(config), params(99)
    cohort = LocalCohort([contribution(client) for client in range(num_clients)])
    metrics = aggregator.aggregate(cohort, start, aggregator.init(start)).metrics
    return [{name: metrics[name] for name in BYTES}, *aggregator.exchanged(outline(), num_clients)]


@pytest.mark.parametrize("clip_norm", [0.0, 0.5], ids=["free", "clipped"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_rule_foretells_what_it_exchanges(name: str, clip_norm: float) -> None:
    for num_clients in (1, 2, 7):
        if num_clients < build_aggregator(AggregatorConfig(name)).fuse.least_clients:
            continue
        counted, least, most = counted_and_foretold(AggregatorConfig(name, clip_norm=clip_norm), num_clients)
        assert least.keys() == most.keys() == BYTES
        assert all(least[key] <= counted[key] <= most[key] for key in BYTES), (num_clients, counted, least, most)
        assert name in RANGES or least == most


@pytest.mark.parametrize("config", [
    AggregatorConfig("fedcmp", fuse={"tau": 0.0}),
    AggregatorConfig("fedcmp", fuse={"tau": 1.0}),
    AggregatorConfig("fedcmp", fuse={"energy": 1.0}),
    AggregatorConfig("fedcmp", fuse={"basis": "none"}, server={"projected": False}),
    AggregatorConfig("fedcmp", fuse={"evidence": False, "tau": 0.5}),
    AggregatorConfig("fedcmp", normalise=True, clip_norm=1.0),
    AggregatorConfig("fedavg", local={"rule": "server_momentum"}, pairwise=0),
    AggregatorConfig("fedavg", pairwise=3),
    AggregatorConfig("ties", normalise=True),
], ids=str)  # fmt: skip
def test_options_that_change_what_is_sent(config: AggregatorConfig) -> None:
    counted, least, most = counted_and_foretold(config, num_clients=4)
    assert all(least[key] <= counted[key] <= most[key] for key in BYTES), (counted, least, most)
    is_range = config.name == "fedcmp" and not config.fuse.keys() & {"basis", "energy"} and config.fuse.get("tau") != 0
    assert (least != most) == is_range


@pytest.mark.parametrize("config", [
    AggregatorConfig("fedcmp", fuse={"basis": "evidence"}),
    AggregatorConfig("knots", fuse={"merge": "mean"}),
    AggregatorConfig("geometric-median", fuse={"max_iterations": 1}),
], ids=str)  # fmt: skip
def test_bounds_hold_for_other_parts(config: AggregatorConfig) -> None:
    for num_clients in (1, 2, 6):
        counted, least, most = counted_and_foretold(config, num_clients)
        assert all(least[key] <= counted[key] <= most[key] for key in BYTES), (counted, least, most)


def test_bounds_are_reached() -> None:
    """Clients that share one direction need the least, many that differ the most."""
    aggregator, start = build_aggregator(AggregatorConfig("knots")), params(99)
    same = [replace(contribution(0), client_id=client) for client in range(3)]
    flat = [replace(one, delta={n: torch.ones_like(v) for n, v in one.delta.items()}) for one in same]
    low = aggregator.aggregate(LocalCohort(flat), start, aggregator.init(start)).metrics
    counted, _, most = counted_and_foretold(AggregatorConfig("knots"), 7)
    assert low["bytes/up"] == aggregator.exchanged(outline(), 3)[0]["bytes/up"]
    assert counted == most
