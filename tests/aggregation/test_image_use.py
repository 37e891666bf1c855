"""Weights by image use against the same method with those weights given, its limits, and what a lie can do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_canonical import PARAMS, clients

from fedcmp.aggregation.contribution import Cohort, Contribution, MappedCohort
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.image_use import ImageUse
from fedcmp.aggregation.fuse.ties import Ties
from fedcmp.aggregation.linalg import squared_norm
from fedcmp.aggregation.parts import Fuse, Fused
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.distributed.secure import SecureCohort
from fedcmp.errors import ConfigError

NAN = (math.nan, math.nan)
SAID = ((1.4, 2.0), (1.98, 2.0), (2.4, 2.0), (1.03, 1.03), NAN)
"""Losses with the right and with other pictures: s_k of 0.3, 0.01, 0, 0 and unknown."""
COUNTS = torch.tensor([1.0, 0.1, 0.01, 0.7, 1.0], dtype=torch.float64)
"""r_k of SAID after a round with s 0.2 and L 1: the fourth has easy captions."""
USUAL = [0.2, 1.0]


def said(losses: tuple[tuple[float, float], ...] = SAID) -> list[Contribution]:
    return [replace(one, picture_losses=pair) for one, pair in zip(clients(), losses, strict=True)]


def fuse(method: Fuse, cohort: Cohort, usual: list[float] = USUAL) -> Fused:
    return method.fuse(cohort, PARAMS, {**method.init(PARAMS), "image_use": usual})


def close(found: Fused, expected: Fused) -> None:
    for name, value in expected.delta.items():
        torch.testing.assert_close(found.delta[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "inner", [Mean(), Canonical(), Canonical(explore=0.0), Canonical(tau=0.0, basis="none"), Ties()]
)
def test_it_is_the_method_with_other_weights(inner: Fuse) -> None:
    """The same as if the server knew r_k, sums of squares of weights included, also under masks."""
    plain = LocalCohort(said())
    weights = plain.weights * COUNTS
    expected = inner.fuse(MappedCohort(plain, lambda one: one, weights / weights.sum()), PARAMS, {})
    found = fuse(ImageUse(inner), plain)
    close(found, expected)
    for key, value in expected.metrics.items():
        assert found.metrics[key] == pytest.approx(value, rel=1e-5), key
    norms = torch.tensor([squared_norm(one.delta) for one in said()], dtype=torch.float64)
    assert found.mean_square == pytest.approx(float((weights / weights.sum() * norms).sum()))
    assert found.metrics["aggregator/counted"] == pytest.approx(float(weights.sum()))
    close(fuse(ImageUse(inner), SecureCohort(said())), found)


def test_the_next_round_knows_what_is_usual() -> None:
    found = fuse(ImageUse(Mean()), LocalCohort(said()))
    weights = LocalCohort(said()).weights[:4]
    told = torch.tensor([[0.3, 1.4], [0.01, 1.98], [0.0, 2.4], [0.0, 1.03]], dtype=torch.float64)
    assert found.state["image_use"] == pytest.approx((weights @ told / weights.sum()).tolist())
    silent = ImageUse(Mean()).fuse(LocalCohort(said((NAN,) * 5)), PARAMS, found.state)
    assert silent.state["image_use"] == found.state["image_use"], "a round that tells nothing changes nothing"


@pytest.mark.parametrize(("losses", "usual"), [
    (SAID, [0.0, 0.0]), (SAID, [0.049, 1.0]), ((NAN,) * 5, USUAL),
    (((0.2, 2.0), (1.0, 2.0), (2.7, 3.0), (1.0, 1.0), (0.5, 0.4)), USUAL),
])  # fmt: skip
def test_all_count_alike_where_there_is_nothing_to_hold_against_them(losses, usual: list[float]) -> None:
    """In the first round, where pictures explain little, where none can be exchanged, and where each client uses its
    pictures or has easy captions: to the bit."""
    expected = Canonical().fuse(LocalCohort(clients()), PARAMS, {})
    found = fuse(ImageUse(Canonical()), LocalCohort(said(losses)), usual)
    for name, value in expected.delta.items():
        assert torch.equal(found.delta[name], value)
    close(fuse(ImageUse(Canonical()), LocalCohort(said(((2.0, 2.0),) * 5))), expected)
    one = said()[1]  # alone, its delta is returned unchanged
    alone = fuse(ImageUse(Canonical()), LocalCohort([one])).delta
    assert all(torch.equal(alone[name], value) for name, value in one.delta.items())


@pytest.mark.parametrize("lie", [(0.0, 1.0), (0.0, 1e300), (1e300, 1.0), (math.inf, 1.0), (-1.0, 1.0)])
def test_a_lie_weighs_no_more_than_its_client(lie: tuple[float, float]) -> None:
    """It has its whole weight at most, and lowers the others in the next round by a bounded factor."""
    honest = (1.6, 2.0)
    cohort = LocalCohort(said((lie, *(honest,) * 4)))
    weight = float(cohort.weights[0])
    now = fuse(ImageUse(Mean()), cohort, [0.2, 1.6])
    assert now.state["image_use"][0] <= 0.2 * (1 - weight) + weight + 1e-12
    after = ImageUse(Mean()).fuse(cohort, PARAMS, now.state)
    assert after.metrics["aggregator/counted"] >= min(1.0, 2 * 0.2 / (0.2 + weight)) * (1 - weight)


def test_it_is_a_part_of_fedcmp_and_a_switch_of_methods_that_sum() -> None:
    assert "image_use" in build_aggregator(AggregatorConfig("fedcmp")).needs
    assert "image_use" not in build_aggregator(AggregatorConfig("fedcmp", image_use=False)).needs
    assert "image_use" in build_aggregator(AggregatorConfig("fedavg", image_use=True)).needs
    with pytest.raises(ConfigError, match="image_use"):
        build_aggregator(AggregatorConfig("krum", image_use=True))
