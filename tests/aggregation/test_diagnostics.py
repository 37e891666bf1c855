"""Interference and oscillation, by hand."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.diagnostics import cohort_cosines, energy_kept, step_cosine
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.distributed.cohort import LocalCohort


def test_orthogonal_clients_keep_one_kth() -> None:
    deltas = torch.eye(4)
    square = squared_norm({"w": deltas.mean(0)})
    assert energy_kept(square, float(deltas.square().sum(1).mean())) == pytest.approx(1 / 4)
    assert energy_kept(0.0, 1.0) == 0.0
    assert energy_kept(0.0, 0.0) == 1.0


def test_cosines_are_over_all_parameters_together() -> None:
    deltas = {"a": torch.tensor([[1.0], [1.0], [0.0]]), "b": torch.tensor([[0.0], [1.0], [0.0]])}
    clients = [Contribution(k, {name: value[k] for name, value in deltas.items()}) for k in range(3)]
    found = cohort_cosines(LocalCohort(clients), clients[0].delta, most=64)
    assert found["aggregator/cosines"] == pytest.approx([0.5**0.5, 0.0, 0.0], abs=1e-4)  # pairs 01, 02, 12
    assert found["aggregator/cosine"] == pytest.approx(0.5**0.5 / 3)
    assert found["aggregator/cosine_min"] == 0.0
    assert cohort_cosines(LocalCohort(clients), clients[0].delta, most=2)["aggregator/cosines"] == pytest.approx(
        [0.5**0.5], abs=1e-4
    ), "a sample of a large cohort"
    assert cohort_cosines(LocalCohort(clients), clients[0].delta, most=0) == {}


def test_a_step_back_is_minus_one() -> None:
    assert step_cosine({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([-2.0, -4.0])}, 20.0) == pytest.approx(-1.0)
    assert step_cosine({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 2.0) == 0.0
