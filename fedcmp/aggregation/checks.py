"""Range checks of options. The message names the key as the user types it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedcmp.errors import ConfigError, nearest


def require_fraction(key: str, value: object, *, below: float = 1.0) -> None:
    """``value`` must be a number in [0, below).

    >>> require_fraction("aggregator.server.beta1", 1.2)
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: aggregator.server.beta1 must be in [0, 1), got 1.2
    """
    if not (_is_number(value) and 0 <= value < below):  # type: ignore[operator]
        raise ConfigError(f"{key} must be in [0, {below:g}), got {value!r}")


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


def require_share(key: str, value: object, *, most: float = 1.0, least_open: bool = False) -> None:
    """``value`` must be a number from 0 (or above it, if ``least_open``) to ``most``.

    >>> require_share("aggregator.fuse.energy", 0.0, least_open=True)
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: aggregator.fuse.energy must be in (0, 1], got 0.0
    """
    above = _is_number(value) and (value > 0 or (value == 0 and not least_open))  # type: ignore[operator]
    if not (above and value <= most and value < math.inf):  # type: ignore[operator]
        end = "inf)" if most == math.inf else f"{most:g}]"
        raise ConfigError(f"{key} must be in {'(' if least_open else '['}0, {end}, got {value!r}")


def require_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """``value`` must be one of ``choices``.

    >>> require_choice("fuse.basis", "update", ("updates", "evidence"))
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: fuse.basis: unknown choice 'update'; did you mean "updates"? (choices: evidence, updates)
    """
    if value not in choices:
        raise ConfigError(f"{key}: unknown choice {value!r}; {nearest(str(value), choices)}")


def require_count(key: str, value: object, *, least: int) -> None:
    """``value`` must be a whole number of at least ``least``.

    >>> require_count("aggregator.fuse.byzantine", -1, least=0)
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: aggregator.fuse.byzantine must be a whole number >= 0, got -1
    """
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        raise ConfigError(f"{key} must be a whole number >= {least}, got {value!r}")
