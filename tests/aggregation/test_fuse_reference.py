"""TIES, KnOTS and clipping against loops over single numbers in float64, written from the papers' equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from vectors import PARAMS, SHAPES, clients, flat, points

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.krum import Krum
from fedcmp.aggregation.fuse.ties import Ties, bound_of_largest
from fedcmp.aggregation.fuse.update_svd import UpdateSvd
from fedcmp.aggregation.fuse.wrappers import Clipped
from fedcmp.aggregation.parts import Aggregated
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort

P = [k / 10 for k in (1, 2, 3, 4)]
"""The weights of four clients."""


def ties(vectors: list[list[float]], weights: list[float], density: float) -> list[float]:
    """Algorithm 1 of TIES-Merging, coordinate by coordinate, with weighted means."""
    size, kept = len(vectors[0]), []
    for vector in vectors:
        ranking = sorted(range(size), key=lambda i: -abs(vector[i]))
        top = set(ranking[: math.ceil(density * size)])
        kept.append([x if i in top else 0.0 for i, x in enumerate(vector)])
    merged = []
    for i in range(size):
        mass = sum(p * vector[i] for p, vector in zip(weights, kept, strict=True))
        agree = [(p, vector[i]) for p, vector in zip(weights, kept, strict=True) if vector[i] * mass > 0]
        total = sum(p for p, _ in agree)
        merged.append(sum(p * x for p, x in agree) / total if total else 0.0)
    return merged


def knots(one: list[Contribution], density: float, scaled: bool) -> list[float]:
    """numpy's SVD of the deltas side by side, TIES over the parts of V: the layer's W~, row by row."""
    wide = [np.hstack([c.delta["linear.weight"].double(), c.delta["linear.bias"].double()[:, None]]) for c in one]
    left, values, right = np.linalg.svd(np.hstack(wide), full_matrices=False)
    parts = [right[:, 5 * k : 5 * (k + 1)] * (values[:, None] if scaled else 1.0) for k in range(len(one))]
    merged = np.array(ties([part.flatten().tolist() for part in parts], P, density)).reshape(parts[0].shape)
    return (left @ (merged if scaled else np.diag(values) @ merged)).flatten().tolist()


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
def test_ties_is_its_algorithm(density: float) -> None:
    one = clients(4)
    fused = Ties(density).fuse(LocalCohort(one), PARAMS, {})
    expected = ties([flat(c.delta) for c in one], P, density)
    assert flat(fused.delta) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert fused.metrics["aggregator/density"] == sum(x != 0 for x in expected) / len(expected)


def test_ties_keeps_equal_sizes_together_and_lets_exact_ties_of_signs_be_zero() -> None:
    assert Ties(0.25).fuse(*points([2.0, -2.0, 1.0, 0.0]), {}).delta["w"].tolist() == [2.0, -2.0, 0.0, 0.0]
    assert Ties(1.0).fuse(*points([1.0, 0.0], [-1.0, 0.0]), {}).delta["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("density", [0.2, 0.6])
@pytest.mark.parametrize("scaled", [False, True])
def test_knots_is_ties_in_the_common_space(density: float, scaled: bool) -> None:
    one = clients(4, 1)
    fused = UpdateSvd("ties", density, scaled).fuse(LocalCohort(one), PARAMS, {})
    found = torch.cat([fused.delta["linear.weight"], fused.delta["linear.bias"][:, None]], dim=1)
    assert found.flatten().tolist() == pytest.approx(knots(one, density, scaled), rel=1e-5, abs=1e-6)
    rest = ties([c.delta["norm.weight"].tolist() for c in one], P, density)
    assert fused.delta["norm.weight"].tolist() == pytest.approx(rest, rel=1e-6)
    assert fused.metrics == {"aggregator/rank/linear": 3}
    assert list(fused.delta) == list(SHAPES)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_knots_with_the_mean_is_the_mean(scale: float) -> None:
    fused = UpdateSvd("mean").fuse(LocalCohort(clients(4, 2, scale)), PARAMS, {})
    for name in SHAPES:
        torch.testing.assert_close(fused.delta[name], fused.mean[name].float(), rtol=1e-5, atol=1e-6 * scale)


def test_knots_drops_what_float32_cannot_know() -> None:
    layer = {"linear.weight": torch.diag(torch.tensor([1.0, 1e-3, 1e-7])), "linear.bias": torch.zeros(3)}
    fused = UpdateSvd("mean").fuse(LocalCohort([Contribution(0, layer)]), layer, {})
    assert fused.metrics == {"aggregator/rank/linear": 2}
    assert fused.delta["linear.weight"].diagonal().tolist() == pytest.approx([1.0, 1e-3, 0.0])


def test_clipping_bounds_delta_and_halfway_alike() -> None:
    """Norms 5 and 1 with c = 2: the first shrinks to 2/5, over all parameters together; evidence stays."""
    one, two, three, four, zero = (torch.tensor([x]) for x in (1.0, 2.0, 3.0, 4.0, 0.0))
    long = Contribution(0, {"a": three, "b": four}, halfway={"a": one, "b": two}, evidence={"linear": torch.eye(2)})
    short = Contribution(1, {"a": one, "b": zero})
    method = Clipped(Mean(), 2.0)
    assert method.clip(long).delta["a"].item() == pytest.approx(6 / 5)
    assert method.clip(long).halfway == {"a": torch.tensor([2 / 5]), "b": torch.tensor([4 / 5])}
    assert method.clip(long).evidence is long.evidence
    assert method.clip(short) is short
    fused = method.fuse(LocalCohort([long, short]), {}, {})
    assert [fused.delta["a"].item(), fused.delta["b"].item()] == pytest.approx([1.1, 0.8])
    assert fused.metrics["aggregator/clipped"] == 0.5
    assert fused.mean_square == pytest.approx((4 + 1) / 2)


def test_clipping_is_a_setting_of_every_method() -> None:
    krum = build_aggregator(AggregatorConfig("krum", clip_norm=2.0))
    assert krum.fuse == Clipped(Krum(), 2.0)
    assert (krum.fuse.least_clients, krum.sums_only, krum.needs) == (5, False, frozenset())

    def aggregated(one: list[Contribution], norm: float) -> Aggregated:
        method = build_aggregator(AggregatorConfig("fedexp", clip_norm=norm))
        return method.aggregate(LocalCohort(one), PARAMS, method.init(PARAMS))

    one = clients(4, 5)
    plain, same = aggregated(one, 0.0), aggregated(one, 1e3)
    assert all(torch.equal(plain.params[name], same.params[name]) for name in SHAPES)
    bounded = aggregated([clients(4, 6)[0].scaled(1e6), *one[1:]], 1e3).metrics
    assert bounded["aggregator/server_lr"] < 10  # from the clipped deltas: those sent would give millions
    assert 0 < bounded["aggregator/energy_kept"] <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-42, 0.0])
def test_the_bound_of_the_largest_is_that_of_sorting(dtype: torch.dtype, scale: float, monkeypatch) -> None:
    """Rounded numbers, of which many are equal; subnormal ones; zeros, none of which is kept."""
    monkeypatch.setattr("fedcmp.aggregation.linalg.CACHED", 7)
    rng = torch.Generator().manual_seed(0)
    values = {name: scale * torch.randn(shape, generator=rng).round(decimals=1) for name, shape in SHAPES.items()}
    values = {name: value.to(dtype) for name, value in values.items()}
    sizes = torch.cat([value.abs().flatten() for value in values.values()])
    for count in range(1, len(sizes) + 1):
        least = sizes.sort(descending=True).values[count - 1]
        assert (sizes > bound_of_largest(values, count)).equal((sizes >= least) & (sizes > 0))
