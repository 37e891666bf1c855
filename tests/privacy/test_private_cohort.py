"""What a private cohort gives and what it refuses; clipping; the clip that adapts."""

from __future__ import annotations

import math

import pytest
import torch
from samples_of_clients import NUM_CLIENTS, contributions

from fedcmp.aggregation.contribution import delta_of
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.errors import AggregationError
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.noise import BELOW, Mechanism, clip_norm, make_draw, next_clip

DRAW = make_draw("seeded", 0)


def cohort(
    helpers: int | None = None, invited: int = NUM_CLIENTS, noise: float = 1.5, clip: float = 1.0, counts: bool = False
) -> PrivateCohort:
    return PrivateCohort(LocalCohort(contributions()), Mechanism(clip, noise, invited, 4, DRAW, helpers, counts))


def test_what_would_not_be_private_is_refused() -> None:
    private = cohort(helpers=NUM_CLIENTS)
    private.sum(delta_of)
    with pytest.raises(AggregationError, match="second sum"):
        private.sum(delta_of)
    with pytest.raises(AggregationError, match="single clients"):
        cohort().gather(delta_of)
    with pytest.raises(AggregationError, match=r"privacy\.honest"):
        cohort(helpers=NUM_CLIENTS + 1)
    with pytest.raises(AggregationError, match="invited"):
        cohort(invited=6)
    for noise, invited in ((0.0, NUM_CLIENTS), (math.nan, NUM_CLIENTS), (1.0, 0)):
        with pytest.raises(AggregationError, match="no privacy"):
            cohort(invited=invited, noise=noise)


@pytest.mark.parametrize("clip", [0.01, 3.0])
@pytest.mark.parametrize("helpers", [None, 5])
def test_a_sum_is_the_mean_of_clipped_deltas_and_its_noise(helpers: int | None, clip: float) -> None:
    private = cohort(helpers, clip=clip)
    found = private.sum(delta_of, private.weights)
    deviation = 1.5 * clip / NUM_CLIENTS
    for name, value in found.items():
        clipped = sum(clip_norm(one.delta, clip)[name].double() / NUM_CLIENTS for one in contributions())
        shares = [DRAW(value.shape, 4, name, "client", one.client_id) for one in contributions()]
        noise = DRAW(value.shape, 4, name) if helpers is None else sum(shares) / math.sqrt(helpers)
        torch.testing.assert_close(value, clipped + deviation * noise, rtol=0, atol=1e-6 * clip + 1e-9)


def test_weights_do_not_depend_on_who_reports_or_on_samples() -> None:
    for kept in (contributions(), contributions()[:1]):
        private = PrivateCohort(LocalCohort(kept, "samples"), Mechanism(1.0, 1.0, 9, 0, DRAW))
        assert private.weights.tolist() == [1 / 9] * len(kept)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_what_is_not_finite_becomes_zeros(value: float) -> None:
    term = {"w": torch.tensor([value, 1.0], dtype=torch.float64), BELOW: torch.tensor(0.2)}
    clipped = Mechanism(1.0, 1.0, 2, 0, DRAW, counts=True).clip_term(term)
    assert clipped["w"].tolist() == [0.0, 0.0]
    assert float(clipped[BELOW]) == pytest.approx(0.2), "the count is clipped by itself"
    assert clip_norm({"w": term["w"]}, 1.0)["w"].tolist() == [0.0, 0.0]


def test_counting_those_within_the_clip() -> None:
    norms = sorted(math.sqrt(one.square) for one in contributions())
    clip = (norms[2] + norms[3]) / 2  # three of seven are within
    private = cohort(noise=1e-4, clip=clip, counts=True)
    assert private.sum(delta_of).keys() == contributions()[0].delta.keys(), "the method does not see the count"
    assert private.below == pytest.approx(3 / 7, abs=1e-2)
    loud = cohort(noise=1e4, clip=clip, counts=True)
    loud.sum(delta_of)
    assert loud.below in (0.0, 1.0), "cut to a share"


def test_the_clip_finds_the_quantile() -> None:
    norms = torch.linspace(0.1, 5.0, 99)
    for clip in (0.01, 100.0):
        for _ in range(200):
            clip = next_clip(clip, float((norms <= clip).double().mean()), 0.3, 0.3)
        assert clip == pytest.approx(float(norms.quantile(0.3)), rel=0.05)
