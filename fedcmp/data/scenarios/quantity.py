"""Clients differ by how much they have: log-normal or Zipf sizes with a floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedcmp.errors import ConfigError, DataError, check_choice
from fedcmp.seeding import numpy_rng

SIZES = ("lognormal", "zipf")
MOST_UNEQUAL = 20.0
"""Of ``sigma`` and ``s``: far beyond it, shares are outside of a float's range; long before, one client has all."""


@dataclass
class QuantityConfig:
    """For `quantity`: how much each client has."""

    kind: str = "lognormal"
    """`lognormal` (the logarithm of a share has deviation `sigma`) or `zipf` (the r-th largest share is proportional to
    r^-s)."""
    sigma: float = 1.0
    """For `lognormal`, in [0, 20]; 0: all alike."""
    s: float = 1.0
    """For `zipf`, in [0, 20]; 0: all alike."""
    min_samples: int = 32
    """No client gets fewer, >= 1."""

    def validate(self, prefix: str) -> None:
        check_choice(f"{prefix}.kind", self.kind, SIZES)
        for key in ("sigma", "s"):
            if not 0 <= getattr(self, key) <= MOST_UNEQUAL:
                raise ConfigError(f"{prefix}.{key} must be in [0, {MOST_UNEQUAL:g}], got {getattr(self, key)}")
        if self.min_samples < 1:
            raise ConfigError(f"{prefix}.min_samples must be at least 1, got {self.min_samples}")

    def knobs(self) -> dict[str, object]:
        """The settings that act."""
        name = "s" if self.kind == "zipf" else "sigma"
        return {"kind": self.kind, name: getattr(self, name), "min_samples": self.min_samples}


def client_shares(num_clients: int, config: QuantityConfig, seed: int) -> np.ndarray:
    """The share of each client, ``[K]``, positive, with sum 1. Which client is large depends on the seed alone."""
    rng = numpy_rng(seed, "quantity")
    if config.kind == "zipf":
        weights = rng.permutation(np.arange(1.0, num_clients + 1) ** -config.s)
    else:
        weights = np.exp(config.sigma * rng.standard_normal(num_clients))
    return weights / weights.sum()


def even_sizes(total: int, num_clients: int) -> np.ndarray:
    """``total`` samples in K parts that differ by one at most, ``[K]``.

    >>> even_sizes(11, 4)
    array([3, 3, 3, 2])
    """
    return total // num_clients + (np.arange(num_clients) < total % num_clients)


def sizes_from(total: int, shares: np.ndarray, least: int, what: str = "the training data") -> np.ndarray:
    """``total`` samples by shares, whole numbers with exactly that sum, none below ``least``.

    Clients below the floor are lifted to it, at the cost of the others in proportion to their shares; remainders go to
    the largest fractions.

    Args:
        total: samples to share.
        shares: of each client, ``[K]``, positive; they need not sum to 1.
        least: the floor.
        what: where the samples come from, for the message.

    Raises:
        DataError: there are fewer than K times ``least``.

    >>> sizes_from(100, np.array([0.90, 0.09, 0.01]), least=5)
    array([86,  9,  5])
    """
    num_clients = len(shares)
    if total < num_clients * least:
        raise DataError(
            f"{what}: {total:,} samples cannot give {num_clients:,} clients partition.quantity.min_samples={least} each"
        )
    lifted = np.zeros(num_clients, bool)
    while True:
        free = shares * ~lifted
        wanted = np.where(lifted, least, (total - least * lifted.sum()) * free / max(free.sum(), 1e-300))
        low = ~lifted & (wanted < least)
        if not low.any():
            break
        lifted |= low
    sizes = np.floor(wanted + 1e-9).astype(np.int64)
    largest = np.argsort(sizes - wanted, kind="stable")[: total - sizes.sum()]
    sizes[largest] += 1
    return sizes
