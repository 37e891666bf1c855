"""What a round sends, counted on shapes alone, against what the cohort counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from samples_of_clients import SHAPES, contribution, random_params

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.aggregation.traffic import count
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.types import Metrics

EXACT = sorted(PRESETS.keys() - {"fedcmp", "knots", "geometric-median"})
"""Shapes alone decide what is sent: no rank of a basis, no number of iterations."""
CONFIGS = [
    *(AggregatorConfig(name) for name in sorted(PRESETS)),
    AggregatorConfig("fedcmp", fuse={"tau": 0.0}),
    AggregatorConfig("fedcmp", fuse={"energy": 1.0}),
    AggregatorConfig("fedcmp", fuse={"basis": "none"}, server={"projected": False}),
    AggregatorConfig("fedcmp", fuse={"basis": "evidence"}),
    AggregatorConfig("fedcmp", normalise=True, clip_norm=1.0),
    AggregatorConfig("fedcmp", guard=True),
    AggregatorConfig("fedavg", local={"kind": "server_momentum"}, pairwise=0),
    AggregatorConfig("fedavg", pairwise=3),
    AggregatorConfig("knots", clip_norm=0.5, fuse={"merge": "mean"}),
    AggregatorConfig("geometric-median", fuse={"max_iterations": 1}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda one: f"{one.name}-{one.clip_norm}{one.fuse or ''}")
def test_no_round_sends_more_than_was_counted(config: AggregatorConfig) -> None:
    aggregator, start = build_aggregator(config), random_params(99)
    outline = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    for num in {num for num in (1, 2, 7) if num >= aggregator.fuse.least_clients}:
        cohort = LocalCohort([replace(contribution(client), progress=1.0) for client in range(num)])
        metrics = aggregator.aggregate(cohort, start, aggregator.init(start)).metrics
        most = count(aggregator, outline, num).traffic
        assert most.keys() == {"bytes/up", "bytes/down", "bytes/diagnostics"}
        assert all(metrics[key] <= most[key] for key in most), (num, metrics, most)
        if config.name in EXACT or config.fuse.get("max_iterations"):
            assert all(metrics[key] == most[key] for key in most), (num, metrics, most)


@pytest.mark.parametrize("num", [2, 7])
def test_fedcmps_count_has_what_early_and_what_late_rounds_send(num: int) -> None:
    """Whether a round is late is a number, so that both are counted; what both send is counted once."""

    def sent(progress: float, fuse: dict) -> Metrics:
        aggregator = build_aggregator(AggregatorConfig("fedcmp", fuse={"energy": 1.0, **fuse}))
        cohort = [replace(contribution(client), progress=progress, rounds_left=9) for client in range(num)]
        return aggregator.aggregate(LocalCohort(cohort), random_params(99), aggregator.init(random_params(99))).metrics

    early, late, both = sent(0.0, {}), sent(1.0, {}), sent(0.0, {"tau": 0.0})
    most = count(build_aggregator(AggregatorConfig("fedcmp", fuse={"energy": 1.0})), random_params(99), num).traffic
    for way in ("bytes/up", "bytes/down", "bytes/diagnostics"):
        assert most[way] == early[way] + late[way] - both[way]


def test_counts_by_hand() -> None:
    """A mean sends its deltas and one square, and gets parameters; its widest sum and its state are deltas."""
    mean = count(build_aggregator(AggregatorConfig("fedavg")), random_params(0), 3)
    size = 4 * sum(value.numel() for value in random_params(0).values())
    assert mean.traffic == {"bytes/up": 3 * (size + 4), "bytes/down": 3 * size, "bytes/diagnostics": 3 * size}
    assert (mean.widest, mean.state) == (size, size)
    median = count(build_aggregator(AggregatorConfig("geometric-median", pairwise=0)), random_params(0), 3).traffic
    assert median["bytes/down"] == 3 * 101 * size, "a hundred iterations"
    first, basis = 4 * (4 * 3 + 4), 4 * (4 * 4 + 5 * 5)
    for options, shared in (({}, 0), ({"repeatability": True}, basis)):
        found = count(build_aggregator(AggregatorConfig("fedcmp", fuse=options)), random_params(0), 3).traffic
        expected = 3 * (size + first + shared + 2 * size)
        assert found["bytes/down"] == expected, "the fused first layer, the whole basis of both, mean and evidence"
