"""What a private cohort gives and what it refuses; clipping; the clip that adapts."""

from __future__ import annotations

import math

import pytest
import torch
from samples_of_clients import NUM_CLIENTS, contributions

from fedcmp.aggregation.base import Contribution
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.errors import AggregationError
from fedcmp.privacy.adaptive import next_clip
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.noise import Noising, make_draw
from fedcmp.privacy.release import Part, Release, clip_norm, clip_parts, joint_multiplier
from fedcmp.types import Params

RELEASE = Release({"delta": Part(1.0, 0.5), "other": Part(2.0, 0.5)}, {"d": "delta", "e": "delta", "o": "other"}.get)
DRAW = make_draw("seeded", 0)


def cohort(helpers: int | None = None, invited: int = NUM_CLIENTS, **options) -> PrivateCohort:
    return PrivateCohort(LocalCohort(contributions()), Noising(RELEASE, 1.5, invited, helpers), DRAW, 4, **options)


def ones(*names: str):
    def term(one: Contribution) -> Params:
        return {name: torch.ones(3, dtype=torch.float64) for name in names}

    return term


def test_a_part_is_answered_once_a_round() -> None:
    private = cohort()
    private.sum(ones("d", "e"))
    private.sum(ones("o"))
    for again in ("d", "e", "o"):
        with pytest.raises(AggregationError, match="were answered in this round already: the budget counts them once"):
            private.sum(ones(again))


def test_what_has_no_bound_does_not_leave() -> None:
    with pytest.raises(AggregationError, match="'x' has no bound and must not leave its client"):
        cohort().sum(ones("d", "x"))
    with pytest.raises(AggregationError, match="a private cohort has no single clients"):
        cohort().gather(ones("d"))


def test_the_promised_noise_needs_those_who_add_it() -> None:
    cohort(helpers=NUM_CLIENTS)
    with pytest.raises(AggregationError, match=r"round 5: 7 clients report, .* shares of 8 \(privacy.honest\)"):
        cohort(helpers=NUM_CLIENTS + 1)
    with pytest.raises(AggregationError, match="7 clients report, and 6 were invited"):
        cohort(invited=6)


def test_noise_of_the_server_is_the_same_whatever_is_beside_it() -> None:
    alone, beside = cohort().sum(ones("d")), cohort()
    beside.sum(ones("o"))
    assert torch.equal(alone["d"], beside.sum(ones("d"))["d"])


@pytest.mark.parametrize("helpers", [None, 5])
def test_a_sum_is_the_clipped_one_and_its_noise(helpers: int | None) -> None:
    private = cohort(helpers)
    found = private.sum(lambda one: {"d": one.delta["linear_1.bias"] * 1e3 / NUM_CLIENTS})["d"]
    clipped = sum(
        clip_norm({"d": one.delta["linear_1.bias"].double()}, 1e-9)["d"] * 1e9 / NUM_CLIENTS for one in contributions()
    )
    noising = Noising(RELEASE, 1.5, NUM_CLIENTS, helpers)
    if helpers is None:
        expected = clipped + noising.deviation("d") * DRAW([4], 4, "d")
    else:
        shares = [DRAW([4], 4, "d", "client", one.client_id) for one in contributions()]
        expected = clipped + noising.deviation("d") / math.sqrt(helpers) * sum(shares)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_what_is_not_finite_says_nothing(value: float) -> None:
    term = {"d": torch.tensor([value, 1.0], dtype=torch.float64), "o": torch.tensor([0.25])}
    clipped = clip_parts(term, RELEASE, 0.5)
    assert clipped["d"].tolist() == [0.0, 0.0]
    assert clipped["o"].tolist() == [0.25]
    assert all(one.dtype == torch.float64 for one in clipped.values())
    assert clip_norm({"d": torch.tensor([value, 1.0], dtype=torch.float64)}, 1.0)["d"].tolist() == [0.0, 0.0]


def test_clipping_is_joint_within_a_part_and_keeps_what_is_within() -> None:
    term = {"d": torch.tensor([3.0]), "e": torch.tensor([4.0]), "o": torch.tensor([0.9])}
    clipped = clip_parts(term, RELEASE, 0.5)
    norm = math.hypot(float(clipped["d"]), float(clipped["e"]))
    assert norm == pytest.approx(0.5, rel=1e-5)
    assert norm < 0.5
    assert float(clipped["d"]) / float(clipped["e"]) == pytest.approx(0.75)
    assert float(clipped["o"]) == pytest.approx(0.9), "its bound is 2 / 2"
    assert term["d"].item() == 3.0, "the argument stays"


def test_shares_of_the_budget_make_one_mechanism() -> None:
    for shares in ([1.0], [0.5, 0.5], [0.9, 0.06, 0.04]):
        release = Release({str(place): Part(one, one) for place, one in enumerate(shares)}, lambda name: name)
        assert joint_multiplier([release.multiplier(part, 1.7) for part in release.parts]) == pytest.approx(1.7)


def test_counting_those_within_the_clip() -> None:
    release = Release({"delta": Part(1.0, 0.95), "below": Part(0.5, 0.05)}, {"d": "delta", "below": "below"}.get)
    norms = sorted(
        math.sqrt(sum(float(value.double().square().sum()) for value in one.delta.values())) for one in contributions()
    )
    clip = (norms[2] + norms[3]) / 2  # three of seven are within
    noising = Noising(release, 1e-4, NUM_CLIENTS)
    private = PrivateCohort(LocalCohort(contributions()), noising, DRAW, 0, clip)
    found = private.sum(lambda one: {"d": one.delta["linear_1.bias"]})
    assert list(found) == ["d"], "the rule is not told"
    assert private.below == pytest.approx(3 / 7, abs=1e-2)
    loud = PrivateCohort(LocalCohort(contributions()), Noising(release, 1e4, NUM_CLIENTS), DRAW, 0, clip)
    loud.sum(lambda one: {"d": one.delta["linear_1.bias"]})
    assert loud.below in (0.0, 1.0), "cut to a share"


def test_the_clip_finds_the_quantile() -> None:
    norms = torch.linspace(0.1, 5.0, 99)
    for start in (0.01, 100.0):
        clip = start
        for _ in range(200):
            clip = next_clip(clip, float((norms <= clip).double().mean()), 0.3, 0.3)
        assert clip == pytest.approx(float(norms.quantile(0.3)), rel=0.05)
