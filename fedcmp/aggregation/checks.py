"""Range checks of options. The message names the key as the user types it."""

from __future__ import annotations

import math

from fedcmp.errors import ConfigError


def require_fraction(key: str, value: object) -> None:
    """``value`` must be a number in [0, 1).

    >>> require_fraction("aggregator.server.beta1", 1.2)
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: aggregator.server.beta1 must be in [0, 1), got 1.2
    """
    if not (_is_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise ConfigError(f"{key} must be in [0, 1), got {value!r}")


def require_positive(key: str, value: object) -> None:
    """``value`` must be a finite number above 0.

    >>> require_positive("aggregator.server.lr", 0)
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: aggregator.server.lr must be in (0, inf), got 0
    """
    if not (_is_number(value) and 0 < value < math.inf):  # type: ignore[operator]
        raise ConfigError(f"{key} must be in (0, inf), got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
