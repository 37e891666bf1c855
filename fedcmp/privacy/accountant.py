"""How much privacy rounds of Gaussian noise cost, computed by the library dp-accounting."""

from __future__ import annotations

import importlib
import math
import sys
from functools import lru_cache
from typing import Any

from fedcmp.errors import ConfigError

INTERVAL = 1e-3
"""Width of a cell of a privacy loss distribution, in standard deviations of the loss."""
PLD_MINIMUM = 0.01
"""With a noise multiplier of a run below this (epsilon is in the thousands) both accountants give the Renyi bound:
distributions of such losses leave the range of numbers."""
TOLERANCE = 1e-4
"""Largest relative excess of the noise multiplier that ``solve_noise`` finds over the least one."""


@lru_cache(maxsize=4096)
def epsilon_of(accountant: str, noise: float, rounds: int, delta: float) -> float:
    """epsilon of ``rounds`` Gaussian mechanisms, one after the other, each free to depend on the answers before it.

    An upper bound; 0 for no round. No amplification by sampling is claimed: see docs/privacy.md.

    Args:
        accountant: ``pld`` or ``rdp``.
        noise: noise multiplier of each: standard deviation over L2 sensitivity, > 0.
        rounds: how many, at least 0.
        delta: in (0, 1).

    >>> epsilon_of("rdp", 4.0, 0, 1e-5)
    0.0
    """
    if rounds == 0:
        return 0.0
    # rounds of Gaussians are one Gaussian, exactly and for adaptive questions, too (Dong, Roth and Su, JRSS B 2022,
    # corollary 3.3): quicker and no looser than to compose distributions on a grid
    whole = noise / math.sqrt(rounds)
    library = require_library()
    if accountant == "rdp" or whole < PLD_MINIMUM:
        made = importlib.import_module("dp_accounting.rdp").RdpAccountant()
    else:
        pld = importlib.import_module("dp_accounting.pld")
        made = pld.PLDAccountant(value_discretization_interval=INTERVAL / whole)  # the loss is N(., 1 / whole^2)
    made.compose(library.GaussianDpEvent(whole))
    return float(made.get_epsilon(delta))


@lru_cache(maxsize=256)
def solve_noise(accountant: str, epsilon: float, delta: float, rounds: int) -> float:
    """The least noise multiplier with which ``rounds`` Gaussian mechanisms cost at most ``epsilon``.

    It is never below the least one, and above it by a share of at most ``TOLERANCE``.

    Args:
        accountant, delta, rounds: as for ``epsilon_of``; at least one round.
        epsilon: > 0.
    """
    from scipy.optimize import brentq  # takes a while to import, and most runs solve nothing

    # the classical Gaussian mechanism (Dwork and Roth 2014, theorem A.1): only where the search begins
    guess = math.sqrt(2 * math.log(1.25 / delta) * rounds) / epsilon
    if accountant == "pld":
        guess = solve_noise("rdp", epsilon, delta, rounds)

    def excess(noise: float) -> float:
        # with much noise delta alone covers the loss, and epsilon is 0 outright
        return math.log(max(epsilon_of(accountant, noise, rounds, delta), sys.float_info.min) / epsilon)

    low = high = guess
    while excess(low) <= 0:
        high, low = low, low / 1.25
    while excess(high) > 0:
        low, high = high, high * 1.25
    found = float(brentq(excess, low, high, xtol=low * TOLERANCE / 4, rtol=TOLERANCE / 4))
    while excess(found) > 0:  # the root is found to a tolerance, on either side
        found *= 1 + TOLERANCE / 4
    return found


def require_library() -> Any:
    """The library dp-accounting.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("dp_accounting")
    except ImportError as error:
        raise ConfigError(f"privacy.kind needs dp-accounting ({error}): pip install 'fedcmp[privacy]'") from error
