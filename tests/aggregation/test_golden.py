"""Three rounds of a tiny federation per method, kept as numbers. FEDCMP_REWRITE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort

GOLDEN = Path(__file__).parent.parent / "golden"


def delta(round_: int, client: int, rows: int) -> torch.Tensor:
    """Numbers that no change of a random generator can move."""
    places = torch.arange(rows * 2, dtype=torch.float64).reshape(rows, 2)
    return torch.sin(places * (1.3 + client) + 0.7 * round_ + client).float() * 0.1


def contribution(index: int, client: int) -> Contribution:
    """A client that recorded everything that a method may ask for."""

    def params(shift: int, scale: float) -> dict[str, torch.Tensor]:
        return {
            "linear.weight": scale * delta(index, client + shift, 3),
            "linear.bias": scale * delta(index, client + shift + 20, 3)[:, 0],
        }

    rows = torch.cat([delta(index, client + 7, 6) * 10, torch.ones(6, 1)], dim=1)
    return Contribution(
        client,
        params(0, 1.0),
        halfway={name: value / 2 + params(3, 0.1)[name] for name, value in params(0, 1.0).items()},
        evidence={"linear": rows.T @ rows / 6},
        message=params(5, 1.0),
        num_samples=4 + client,
        num_tokens=11 + client,
        num_steps=2 + client % 3,
        scalars={"loss": 1.0 + client / 8, "loss_first": 1.5 + client / 8, "loss_last": 0.5 + client / 8},
    )


def trajectory(name: str) -> list[list[float]]:
    aggregator = build_aggregator(AggregatorConfig(name))
    params = {"linear.weight": torch.ones(3, 2), "linear.bias": torch.zeros(3)}
    state, points = aggregator.init(params), []
    for index in range(3):
        clients = [contribution(index, client) for client in range(5)]
        params, state, _ = aggregator.aggregate(LocalCohort(clients), params, state)
        points.append([*params["linear.weight"].flatten().tolist(), *params["linear.bias"].flatten().tolist()])
    return points


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_numbers_stay(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    if os.environ.get("FEDCMP_REWRITE_GOLDEN") == "1":
        path.write_text(json.dumps([[round(x, 7) for x in point] for point in trajectory(name)], indent=1) + "\n")
    expected = json.loads(path.read_text())
    torch.testing.assert_close(torch.tensor(trajectory(name)), torch.tensor(expected), rtol=1e-5, atol=2e-6)


def test_no_golden_file_is_an_orphan() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(PRESETS)
