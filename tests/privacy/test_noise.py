"""Noise: its statistics, its streams, its grid, and what the shares of clients add up to."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

from fedcmp.privacy.noise import BELOW, GRID, TAIL, Draw, Mechanism, make_draw

SEEDED = make_draw("seeded", 0)


def mechanism(noise: float = 3.0, helpers: int | None = None, draw: Draw = SEEDED, **changes) -> Mechanism:
    return Mechanism(2.0, noise, 10, 7, draw, helpers, **changes)


def noisy(one: Mechanism, value: torch.Tensor, *party: str | int) -> torch.Tensor:
    return one.add_noise({"w": value}, *party)["w"]


@pytest.mark.parametrize("stream", ["seeded", "system"])
def test_numbers_are_standard_normal_and_independent(stream: str) -> None:
    drawn = make_draw(stream, 5)((10, 3001), "a", 1)
    assert drawn.shape == (10, 3001)
    assert drawn.dtype == torch.float64
    flat, count = drawn.flatten(), drawn.numel()
    # all bounds are five to six standard errors: a right generator fails one run in a million
    assert kstest(flat.numpy(), "norm").pvalue > 1e-7
    assert float(flat.var()) == pytest.approx(1.0, abs=5.5 * math.sqrt(2 / count))
    for lag in (1, 2, count // 2):
        assert float((flat[lag:] * flat[:-lag]).mean()) == pytest.approx(0.0, abs=6 / math.sqrt(count - lag))


def test_streams() -> None:
    other, system = make_draw("seeded", 1), make_draw("system", 0)
    first = SEEDED([4], 3, "x")
    assert torch.equal(first, SEEDED([4], 3, "x")), "the same path, the same numbers: what resuming needs"
    paths = [[3, "y"], [4, "x"], [3, "x", "client", 1], ["3", "x"]]
    seen = [first, other([4], 3, "x"), *(SEEDED([4], *path) for path in paths)]
    seen.append(make_draw("seeded", 2**32)([4], 3, "x"))  # torch's generator would take that for seed 0
    assert len({tuple(one.tolist()) for one in seen}) == len(seen)
    assert not torch.equal(system([4], 3, "x"), system([4], 3, "x"))
    assert SEEDED([], 0).shape == system([], 0).shape == ()


def test_a_round_is_one_gaussian_mechanism_whatever_it_counts() -> None:
    assert mechanism().deviation("w") == pytest.approx(3.0 * 2.0 / 10)
    both = mechanism(counts=True)
    multipliers = [both.deviation("w") / (2.0 / 10), both.deviation(BELOW) / (0.5 / 10)]
    assert multipliers[0] < 1.03 * 3.0 < multipliers[1], "most of the budget is for the deltas"
    assert 1 / math.sqrt(sum(one**-2 for one in multipliers)) == pytest.approx(3.0)


@pytest.mark.parametrize(("noise", "helpers"), [(0.51, None), (1.99, 5), (3e-3, None)])
def test_what_is_released_lies_on_a_grid_that_data_do_not_move(noise: float, helpers: int | None) -> None:
    """Its step is as the page says, in deviations of the noise that is added, and far coarser than floats."""
    one, values = mechanism(noise, helpers), torch.linspace(-0.2, 0.2, 20_000, dtype=torch.float64)
    on_grid = [noisy(one, value) for value in (torch.zeros_like(values), values)]
    step = float(on_grid[0].unique().diff().min())
    for released in on_grid:
        assert torch.equal((released / step).round() * step, released)
    assert 2.0**GRID <= step / one.own_deviation("w") <= 2.0 ** (GRID + 1)
    assert step > 1e7 * math.ulp(TAIL * one.own_deviation("w"))


def test_the_largest_entry_of_a_term_is_known_beforehand() -> None:
    def huge(shape, *path):
        return torch.full(shape, 1e9, dtype=torch.float64)

    server, clients = mechanism(draw=huge), mechanism(helpers=4, draw=huge)
    assert server.largest("w") == 2.0 / 10, "clients add nothing"
    term = noisy(clients, torch.full((3,), 0.2, dtype=torch.float64))
    assert float(term.max()) <= clients.largest("w")
    assert float(term.max()) == pytest.approx(0.2 + TAIL * clients.deviation("w") / 2)
