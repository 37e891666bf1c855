"""Checks of options. Errors name the key as the user types it."""

from __future__ import annotations

from fedcmp.errors import ConfigError


def require_number(key: str, value: object, interval: str) -> None:
    """``value`` must be a number in ``interval``, written as ``[0, 1)``; of ``inf)`` every finite number is below.

    >>> require_number("aggregator.server.beta1", 1.2, "[0, 1)")
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: aggregator.server.beta1 must be in [0, 1), got 1.2
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not inside or (value == low and interval[0] == "(") or (value == high and interval[-1] == ")"):
        raise ConfigError(f"{key} must be in {interval}, got {value!r}")


def require_count(key: str, value: object, *, least: int) -> None:
    """``value`` must be a whole number of at least ``least``."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        raise ConfigError(f"{key} must be a whole number >= {least}, got {value!r}")
