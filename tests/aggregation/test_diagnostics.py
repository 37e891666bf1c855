"""Interference and oscillation, by hand."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.diagnostics import energy_kept, mean_cosine, pairwise_cosines, step_cosine


def test_orthogonal_clients_keep_one_kth() -> None:
    deltas = torch.eye(4)
    mean = {"w": deltas.mean(0)}
    assert energy_kept(mean, float(deltas.square().sum(1).mean())) == pytest.approx(1 / 4)
    assert energy_kept({"w": torch.zeros(2)}, 1.0) == 0.0
    assert energy_kept({"w": torch.zeros(2)}, 0.0) == 1.0


def test_cosines_are_over_all_parameters_together() -> None:
    deltas = {"a": torch.tensor([[1.0], [1.0], [0.0]]), "b": torch.tensor([[0.0], [1.0], [0.0]])}
    cosines = pairwise_cosines(deltas)
    assert float(cosines[0, 1]) == pytest.approx(0.5**0.5)
    assert float(cosines[0, 2]) == 0.0
    assert mean_cosine(cosines[:2, :2]) == pytest.approx(0.5**0.5)


def test_a_step_back_is_minus_one() -> None:
    assert step_cosine({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([-2.0, -4.0])}) == pytest.approx(-1.0)
    assert step_cosine({"w": torch.zeros(2)}, {"w": torch.ones(2)}) == 0.0
