"""Noise: its statistics, its streams, its grid, and what clients add up to."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest, norm

from fedcmp.errors import AggregationError
from fedcmp.privacy.noise import GRID, TAIL, Noising, make_draw
from fedcmp.privacy.release import Part, Release

RELEASE = Release({"a": Part(2.0, 0.25), "b": Part(0.5, 0.75)}, {"x": "a", "y": "a", "z": "b"}.get)


@pytest.mark.parametrize("stream", ["seeded", "system"])
@pytest.mark.parametrize("shape", [(30_001,), (100, 300), (10, 10, 300)])
def test_numbers_are_standard_normal_and_independent(stream: str, shape: tuple[int, ...]) -> None:
    drawn = make_draw(stream, 5)(shape, "a", 1)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float64
    flat = drawn.flatten()
    # all bounds are five to six standard errors: an honest generator fails one run in a million
    assert kstest(flat.numpy(), "norm").pvalue > 1e-7
    count = len(flat)
    assert float(flat.mean()) == pytest.approx(0.0, abs=5.5 / math.sqrt(count))
    assert float(flat.var()) == pytest.approx(1.0, abs=5.5 * math.sqrt(2 / count))
    for lag in (1, 2, count // 2):
        assert float((flat[lag:] * flat[:-lag]).mean()) == pytest.approx(0.0, abs=6 / math.sqrt(count - lag))
    tails = sum(float((flat.abs() > at).double().mean()) for at in (3.0,))
    assert tails == pytest.approx(2 * norm.sf(3.0), abs=6 * math.sqrt(0.0027 / count))


def test_streams() -> None:
    draw, other = make_draw("seeded", 0), make_draw("seeded", 1)
    first = draw([4], 3, "x")
    assert torch.equal(first, draw([4], 3, "x")), "the same path, the same numbers: what resuming needs"
    paths = [[3, "y"], [4, "x"], [3, "x", "client", 0], [3, "x", "client", 1], ["3", "x"]]
    seen = [first, other([4], 3, "x"), *(draw([4], *path) for path in paths)]
    seen.append(make_draw("seeded", 2**32)([4], 3, "x"))  # torch's generator would take that for seed 0
    assert len({tuple(one.tolist()) for one in seen}) == len(seen)
    system = make_draw("system", 0)
    assert not torch.equal(system([4], 3, "x"), system([4], 3, "x"))
    assert draw([], 0).shape == system([], 0).shape == ()


def test_deviation_is_the_share_of_sensitivity() -> None:
    noising = Noising(RELEASE, noise=3.0, invited=10)
    assert noising.deviation("x") == noising.deviation("y") == pytest.approx(3.0 / math.sqrt(0.25) * 2.0 / 10)
    assert noising.deviation("z") == pytest.approx(3.0 / math.sqrt(0.75) * 0.5 / 10)
    with pytest.raises(AggregationError, match="'w' has no bound and must not leave its client"):
        noising.deviation("w")


@pytest.mark.parametrize("stream", ["seeded", "system"])
def test_the_server_adds_that_much(stream: str) -> None:
    noising, value = Noising(RELEASE, 3.0, 10), torch.linspace(-1, 1, 20_000, dtype=torch.float64)
    added = noising.add("x", value, make_draw(stream, 0), 7, "x") - value
    assert kstest((added / noising.deviation("x")).numpy(), "norm").pvalue > 1e-7


def test_shares_of_clients_add_up_to_that_much() -> None:
    helpers, draw = 6, make_draw("seeded", 0)
    noising, zeros = Noising(RELEASE, 3.0, 10, helpers), torch.zeros(20_000, dtype=torch.float64)
    shares = [noising.add("x", zeros, draw, 7, "x", "client", client) for client in range(9)]
    assert float(shares[0].std()) == pytest.approx(noising.deviation("x") / math.sqrt(6), rel=0.03)
    promised = sum(shares[:helpers]) / noising.deviation("x")
    assert kstest(promised.numpy(), "norm").pvalue > 1e-7, "the helpers alone give what is promised"
    assert float(sum(shares).std()) == pytest.approx(noising.deviation("x") * math.sqrt(9 / 6), rel=0.03)


@pytest.mark.parametrize("helpers", [None, 5])
def test_what_is_released_lies_on_a_grid_that_data_do_not_move(helpers: int | None) -> None:
    noising, draw = Noising(RELEASE, 1e-3, 10, helpers), make_draw("seeded", 0)
    values = torch.tensor([1e-9, math.pi / 20, 0.1, -0.2, 1.23456789e-17], dtype=torch.float64)
    released = noising.add("x", values, draw, 0, "x")
    grid = 2.0 ** (math.floor(math.log2(noising.share * noising.deviation("x"))) + 1 + GRID)
    assert torch.equal((released / grid).round() * grid, released)
    assert not torch.equal((values / grid).round() * grid, values)
    assert grid < 1e-6 * noising.deviation("x"), "far below the noise"


@pytest.mark.parametrize("noise", [0.51, 1.0, 1.5, 1.99, 2.0, 3e-3])
@pytest.mark.parametrize("helpers", [None, 5])
def test_the_grid_is_as_fine_as_the_page_says_and_far_coarser_than_floats(noise: float, helpers: int | None) -> None:
    """The step between values that are released, in deviations of the noise that is added."""
    noising, zeros = Noising(RELEASE, noise, 10, helpers), torch.zeros(20_000, dtype=torch.float64)
    deviation = noising.share * noising.deviation("x")
    released = noising.add("x", zeros, make_draw("seeded", 0), 0, "x").unique()
    step = float(released.diff().min())
    assert torch.equal((released / step).round() * step, released)
    assert 2.0**GRID <= step / deviation <= 2.0 ** (GRID + 1)
    assert step > 1e7 * math.ulp(TAIL * deviation)


def test_how_large_a_term_may_be_is_known_beforehand() -> None:
    class Huge:
        def __call__(self, shape, *path):
            return torch.full(shape, 1e9, dtype=torch.float64)

    server, clients = Noising(RELEASE, 3.0, 10), Noising(RELEASE, 3.0, 10, 4)
    assert server.largest("x") == 2.0 / 10, "clients add nothing"
    term = clients.add("x", torch.full((3,), 0.2, dtype=torch.float64), Huge())
    assert float(term.max()) <= clients.largest("x")
    assert float(term.max()) == pytest.approx(0.2 + TAIL * clients.deviation("x") / 2)
    assert 2 * norm.sf(TAIL) < 1e-32


@pytest.mark.parametrize(("noise", "invited"), [(0.0, 3), (float("nan"), 3), (1.0, 0)])
def test_no_noise_is_no_privacy(noise: float, invited: int) -> None:
    with pytest.raises(AggregationError, match="no privacy with noise="):
        Noising(RELEASE, noise, invited)
