"""Median, trimmed mean, Krum and the geometric median against brute force in float64, and by hand."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import pytest
import torch
from vectors import PARAMS, SIZE, clients, flat, points

from fedcmp.aggregation.fuse.coordinate_wise import Median, TrimmedMean, ordered
from fedcmp.aggregation.fuse.geometric_median import GeometricMedian
from fedcmp.aggregation.fuse.krum import Krum
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.errors import AggregationError


def distance(one: list[float], other: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(one, other, strict=True)))


@pytest.mark.parametrize("num", [1, 2, 5, 6])
def test_the_median_is_the_textbooks(num: int) -> None:
    one = clients(num)
    fused = Median().fuse(LocalCohort(one), PARAMS, {})
    columns = zip(*(flat(c.delta) for c in one), strict=True)
    assert flat(fused.delta) == pytest.approx([statistics.median(column) for column in columns], rel=1e-6)
    assert Median().fuse(LocalCohort(one[::-1]), PARAMS, {}).delta["linear.bias"].equal(fused.delta["linear.bias"])


@pytest.mark.parametrize(("trim", "num", "cut"), [(0.0, 5, 0), (0.2, 5, 1), (0.3, 10, 3), (0.4, 4, 1), (0.29, 100, 29)])
def test_the_trimmed_mean_drops_both_ends(trim: float, num: int, cut: int) -> None:
    one = clients(num)
    fused = TrimmedMean(trim).fuse(LocalCohort(one), PARAMS, {})
    columns = [sorted(column) for column in zip(*(flat(c.delta) for c in one), strict=True)]
    expected = [sum(column[cut : num - cut]) / (num - 2 * cut) for column in columns]
    assert flat(fused.delta) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert fused.metrics == {"aggregator/trimmed": cut}


def test_columns_are_sorted_for_any_number_of_clients() -> None:
    """By the principle of 0 and 1: a network that sorts every column of them sorts every column."""
    for num in range(1, 12):
        columns = torch.tensor([*itertools.product((0.0, 1.0), repeat=num)]).T
        assert ordered(columns).equal(columns.sort(dim=0).values)
    for num in (16, 33, 100):
        values = torch.randn(num, 50, generator=torch.Generator().manual_seed(num)).round(decimals=1)
        assert ordered(values).equal(values.sort(dim=0).values)
    broken = torch.tensor([[1.0], [math.nan], [-math.inf], [0.0]])
    assert ordered(broken).flatten().tolist() == [-math.inf, 0.0, 1.0, math.inf]


@pytest.mark.parametrize("part", ["contribution.CHUNK", "linalg.CACHED"])
def test_pieces_change_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = LocalCohort(clients(5))
    methods = (Median(), TrimmedMean(), Krum())
    whole = [method.fuse(one, PARAMS, {}).delta for method in methods]
    monkeypatch.setattr(f"fedcmp.aggregation.{part}", 5)
    for method, before in zip(methods, whole, strict=True):
        assert flat(method.fuse(one, PARAMS, {}).delta) == flat(before)


@pytest.mark.parametrize(("num", "f", "keep"), [(3, 0, 1), (5, 1, 1), (6, 1, 0), (7, 2, 3), (9, 2, 9)])
def test_krum_is_brute_force(num: int, f: int, keep: int) -> None:
    for seed in range(10):
        one = clients(num, seed)
        vectors = {c.client_id: flat(c.delta) for c in one}
        scores = {
            k: sum(sorted(distance(v, w) ** 2 for j, w in vectors.items() if j != k)[: num - f - 2])
            for k, v in vectors.items()
        }
        chosen = sorted(sorted(scores, key=lambda k: scores[k])[: keep or num - f])
        fused = Krum(f, keep).fuse(LocalCohort(one), PARAMS, {})
        assert fused.metrics == {"aggregator/chosen": chosen}
        expected = [sum(vectors[k][i] for k in chosen) / len(chosen) for i in range(SIZE)]
        assert flat(fused.delta) == pytest.approx(expected, rel=1e-5, abs=1e-7)


LINE = [[0.0], [1.0], [2.0], [4.0], [50.0]]


@pytest.mark.parametrize(("rows", "keep", "chosen"), [
    # f = 1, two neighbours: scores 5 2 5 13 ...; ids decide between 0 and 2
    (LINE, 1, [1]), (LINE, 2, [0, 1]), (LINE, 0, [0, 1, 2, 3]),
    # expanded in float32, |a|^2 - 2 a b + |b|^2 of these deltas is noise that may be negative
    ([[4096.0 + x / 1024, -4096.0] for x in (0, 3, 4, 5, 9)], 1, [2]),
    ([[1e20 * x] for x, in LINE], 1, [1]),  # squares beyond float32
    # one far client: products of the deltas, or of what they differ from it, lose the others' distances in float64, too
    ([[1e20, 1e20]] + [[1.0 + x / 2**20, -1.0] for x in (0, 3, 4, 5, 9)], 1, [2]),
])  # fmt: skip
def test_krum_by_hand_and_far_from_zero(rows: list, keep: int, chosen: list[int]) -> None:
    assert Krum(keep=keep).fuse(*points(*rows), {}).metrics["aggregator/chosen"] == chosen


def test_krum_needs_two_f_and_three() -> None:
    assert (Krum(byzantine=2, keep=1).least_clients, Krum(byzantine=0, keep=8).least_clients) == (7, 8)
    aggregator = build_aggregator(AggregatorConfig("krum"))
    with pytest.raises(AggregationError, match="Krum needs at least 5 clients in a round, got 4"):
        aggregator.aggregate(LocalCohort(clients(4)), PARAMS, aggregator.init(PARAMS))


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_the_geometric_median_is_weiszfelds(iterations: int) -> None:
    """With a nu between the distances, so that some clients pull and some count as at the point."""
    one, nu, objective = clients(5), 3.5, 0.0
    p = [c.num_samples / 15 for c in one]
    vectors = [flat(c.delta) for c in one]
    v = [0.0] * SIZE
    for _ in range(iterations):
        far = [distance(v, w) for w in vectors]
        held = sum(q for q, d in zip(p, far, strict=True) if d < nu)
        beta = [q / d if d >= nu else 0.0 for q, d in zip(p, far, strict=True)]
        objective = sum(q * (d if d > nu else d * d / (2 * nu) + nu / 2) for q, d in zip(p, far, strict=True))
        goal = [sum(b * w[i] for b, w in zip(beta, vectors, strict=True)) / sum(beta) for i in range(SIZE)]
        pull = distance(goal, v) * sum(beta)
        assert 0 < held < pull
        v = [to + held / pull * (at - to) for at, to in zip(v, goal, strict=True)]
    method = GeometricMedian(smoothing=nu, tolerance=0.0, max_iterations=iterations)
    fused = method.fuse(LocalCohort(one), PARAMS, {})
    assert flat(fused.delta) == pytest.approx(v, rel=1e-5, abs=1e-6)
    assert fused.metrics == {"aggregator/iterations": iterations, "aggregator/objective": pytest.approx(objective)}


def test_the_geometric_median_is_a_minimum_and_outliers_hardly_move_it() -> None:
    one = clients(6)
    one[2] = replace(one[2], delta={name: 1e4 * value for name, value in one[2].delta.items()})
    fused = GeometricMedian(tolerance=1e-6, max_iterations=300).fuse(LocalCohort(one), PARAMS, {})
    vectors, p = [flat(c.delta) for c in one], [c.num_samples / 21 for c in one]

    def objective(v: list[float]) -> float:
        return sum(q * distance(v, w) for q, w in zip(p, vectors, strict=True))

    found = flat(fused.delta)
    for i, step in itertools.product(range(SIZE), (-0.05, 0.05)):
        assert objective([x + step * (i == j) for j, x in enumerate(found)]) > objective(found)
    assert math.hypot(*found) < 10 < 1000 < math.hypot(*flat(fused.mean))


@pytest.mark.parametrize(("name", "options", "most"), [
    ("median", {}, 3),
    ("trimmed-mean", {}, 1), ("trimmed-mean", {"trim": 0.375}, 3),
    ("krum", {}, 1), ("krum", {"byzantine": 2}, 2),
    ("multi-krum", {}, 1), ("multi-krum", {"byzantine": 2}, 2),
    ("geometric-median", {}, 3),
])  # fmt: skip
def test_each_method_withstands_as_many_of_eight_as_its_options_say(name: str, options: dict, most: int) -> None:
    method = build_aggregator(AggregatorConfig(name, fuse=options)).fuse
    rng = torch.Generator().manual_seed(4)
    rows = [(1.0 + 0.3 * torch.randn(200, generator=rng)).tolist() for _ in range(8)]

    def away(byzantine: int) -> float:
        """In norms of the honest, who say about 1 everywhere."""
        cohort, params = points(*([-1e6] * 200,) * byzantine, *rows[byzantine:])
        return float((method.fuse(cohort, params, {}).delta["w"] - 1.0).norm()) / math.sqrt(200)

    assert max(away(byzantine) for byzantine in range(most + 1)) < 0.5
    assert name == "krum" or away(most + 1) > 2, "Krum may be luckier than its limit"


@pytest.mark.parametrize(("sent", "most"), [(-1e6, 0.003), (0.0, 0.01)])
def test_the_geometric_median_bounds_three_of_eight_by_default(sent: float, most: float, caplog) -> None:
    """Far away, where a mean would follow them, and at 0, where the iteration begins."""
    honest = 1.0 + 0.3 * torch.randn(5, 200, generator=torch.Generator().manual_seed(3))
    cohort, params = points(*([sent] * 200,) * 3, *honest.tolist())
    found, exact = (method.fuse(cohort, params, {}).delta["w"] for method in (
        GeometricMedian(), GeometricMedian(tolerance=0.0, max_iterations=400)))  # fmt: skip
    assert float((found - honest.mean(dim=0)).norm() / honest.mean(dim=0).norm()) < 0.3
    assert float((found - exact).norm() / exact.norm()) < most
    caplog.clear()
    GeometricMedian(max_iterations=1).fuse(cohort, params, {})
    assert "aggregator.fuse.max_iterations=1" in caplog.text


@pytest.mark.parametrize(("rows", "options", "point", "iterations", "objective"), [
    ([[1.0, 2.0]] * 2, {}, [1.0, 2.0], 2, 5e-7),  # equal clients are the answer, and the second iteration stays there
    ([[1.0, 2.0], [-1.0, -2.0]], {}, [0.0, 0.0], 1, math.sqrt(5)),  # opposite ones cancel at once
    ([[1.0], [2.0], [4.0]], {"tolerance": 0.5}, None, 2, None),
    ([[1.0], [2.0], [900.0]], {"tolerance": 0.0}, [2.0], None, None),
])  # fmt: skip
def test_the_geometric_median_stops_where_the_point_does(rows, options, point, iterations, objective) -> None:
    fused = GeometricMedian(**options).fuse(*points(*rows), {})
    assert point in (None, fused.delta["w"].tolist())
    assert iterations in (None, fused.metrics["aggregator/iterations"])
    assert objective is None or fused.metrics["aggregator/objective"] == pytest.approx(objective)
