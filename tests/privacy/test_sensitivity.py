"""One client more or less changes all that a round releases by no more than is promised, whatever the client sends.

Cohorts that are neighbours, built by leaving each client out, go through the methods and the true ``Cohort.sum``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from samples_of_clients import contributions, random_params

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.noise import BELOW, Mechanism, make_draw
from fedcmp.privacy.settings import private_methods
from fedcmp.types import Params

CLIP, NOISE, INVITED = 0.3, 2.0, 9


class Neighbours(LocalCohort):
    """A cohort that also asks each cohort in which one client is silent, and keeps by how much the answers differ."""

    changes: tuple[dict[str, torch.Tensor], ...] = ()
    """By client, the change of each tensor of the sum."""

    def sum(self, fn: Callable[[Contribution], Params], weights: torch.Tensor | None = None) -> Params:
        assert not self.changes, "one sum is asked for"
        total = super().sum(fn, weights)
        for one in self._contributions:
            others = LocalCohort([other for other in self._contributions if other is not one], "uniform", INVITED)
            without = others.sum(fn)
            self.changes += ({name: total[name] - without[name] for name in total},)
        return total


def honest(scale: float) -> list[Contribution]:
    return [one.scaled(scale) for one in contributions()]


def byzantine() -> list[Contribution]:
    """Each tries another way to move the sum by more than is allowed."""
    clients = contributions()
    single = {name: torch.zeros_like(value) for name, value in clients[4].delta.items()}
    single["linear_1.weight"][0, 0] = 1e20
    return [
        *(one.scaled(scale) for one, scale in zip(clients[:4], (1e6, 1e-30, math.nan, 3e37), strict=True)),
        replace(clients[4], delta=single),
        *(one.scaled(scale) for one, scale in zip(clients[5:], (math.inf, -1e3), strict=True)),
    ]


def measured(name: str, clients: list[Contribution], counts: bool) -> list[float]:
    """For each client the change of all that is released, in deviations of its noise."""
    method = build_aggregator(AggregatorConfig(name, weights="uniform", pairwise=0))
    method, params, cohort = (
        dataclasses.replace(method, measures=False),
        random_params(1),
        Neighbours(clients, "uniform", INVITED),
    )
    mechanism = Mechanism(CLIP, NOISE, INVITED, 0, make_draw("seeded", 0), counts=counts)
    method.aggregate(PrivateCohort(cohort, mechanism), params, method.init(params))
    assert cohort.changes[0].keys() == params.keys() | ({BELOW} if counts else set()), "this is all that is asked for"
    return [
        math.sqrt(sum(float((value / mechanism.deviation(key)).square().sum()) for key, value in change.items()))
        for change in cohort.changes
    ]


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("name", private_methods())
def test_joint_sensitivity_of_a_round(name: str, counts: bool) -> None:
    for clients in (honest(0.1), honest(100.0), byzantine()):
        sizes = measured(name, clients, counts)
        assert max(sizes) <= 1 / NOISE, "all that is released together: a Gaussian mechanism of multiplier z"
    assert max(sizes) == pytest.approx(1 / NOISE, rel=1e-4), "the bound is reached"


def test_the_bound_would_be_broken_without_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("noise", "cohort"):
        monkeypatch.setattr(f"fedcmp.privacy.{room}.clip_norm", lambda params, bound: params)
    assert max(measured("fedavg", honest(100.0), False)) > 10 / NOISE
