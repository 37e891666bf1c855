"""What rounds of Gaussian noise cost: the library beside closed forms and published values."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedcmp.errors import ConfigError
from fedcmp.privacy import accountant
from fedcmp.privacy.accountant import TOLERANCE, epsilon_of, require_library, solve_noise


def exact(noise: float, rounds: int, delta: float) -> float:
    """epsilon of the Gaussian mechanism: Balle and Wang, ICML 2018, arXiv 1805.06530, theorem 8, for mu = sqrt(T) / z.

    ``delta(eps) = Phi(mu / 2 - eps / mu) - e^eps Phi(-mu / 2 - eps / mu)``, in logarithms.
    """
    mu = math.sqrt(rounds) / noise

    def excess(epsilon: float) -> float:
        first, second = norm.logcdf(mu / 2 - epsilon / mu), epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return first + math.log1p(-math.exp(min(second - first, -1e-300))) - math.log(delta)

    return float(brentq(excess, 1e-9, 10 * mu**2 + 100 * mu))


def mironov(noise: float, rounds: int, delta: float) -> float:
    """Mironov, CSF 2017, arXiv 1702.07476: corollary 3 (RDP of the Gaussian), proposition 1 (composition) and 3."""
    best = math.sqrt(2 * math.log(1 / delta) * noise**2 / rounds) + 1  # where the derivative is 0
    return rounds * best / (2 * noise**2) + math.log(1 / delta) / (best - 1)


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 12), (20.0, 1000)])
def test_pld_is_the_closed_form_and_rdp_lies_between_it_and_mironovs(noise: float, rounds: int, delta: float) -> None:
    true = exact(noise, rounds, delta)
    tight, loose = (epsilon_of(name, noise, rounds, delta) for name in ("pld", "rdp"))
    assert tight >= true - 1e-6, "an upper bound"
    assert tight == pytest.approx(true, rel=2e-3)
    assert true < loose <= mironov(noise, rounds, delta) * 1.001, "a better conversion, on a grid of orders"
    assert loose < 1.25 * true
    assert epsilon_of("pld", noise, 0, delta) == 0.0


def test_values_that_the_library_publishes() -> None:
    """One Gaussian mechanism, by google/differential-privacy, dp_accounting/pld/privacy_loss_mechanism_test.py."""
    assert exact(1.0, 1, 0.12693674) == pytest.approx(1.0, rel=1e-6)
    assert epsilon_of("pld", 1.0, 1, 0.12693674) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("noise", [1e-6, 0.0099, 0.0101, 1e9])
def test_no_noise_is_too_small_or_too_large(noise: float) -> None:
    tight, loose = (epsilon_of(name, noise, 1, 1e-5) for name in ("pld", "rdp"))
    assert 0 <= tight <= loose
    if 1e-3 <= noise <= 1e3:
        assert tight >= exact(noise, 1, 1e-5) * (1 - 1e-6)


@pytest.mark.parametrize("name", ["pld", "rdp"])
@pytest.mark.parametrize(("epsilon", "delta", "rounds"), [
    (8.0, 1e-5, 12), (1.0, 0.5, 12),  # in the last the search meets an epsilon of 0
])  # fmt: skip
def test_noise_is_the_least_that_keeps_the_budget(name: str, epsilon: float, delta: float, rounds: int) -> None:
    noise = solve_noise(name, epsilon, delta, rounds)
    assert epsilon_of(name, noise, rounds, delta) <= epsilon
    assert epsilon_of(name, noise / (1 + 2 * TOLERANCE), rounds, delta) > epsilon


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(accountant.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"fedcmp\[privacy\]"):
        require_library()
