"""What the tests of this folder have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

from fedcmp.errors import FedcmpError

T = TypeVar("T")


def few(examples: int) -> Any:
    """The same examples on every machine and day, and no deadline: this machine may be busy.

    ``FEDCMP_FUZZ=50`` looks at fifty times as many, others each time.
    """
    factor = int(os.environ.get("FEDCMP_FUZZ", "1"))
    return settings(
        max_examples=factor * examples,
        derandomize=factor == 1,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


def attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """What ``make`` returns and nothing, or None and the message of the fedcmp error that it raises; others pass."""
    try:
        return make(), ""
    except FedcmpError as error:
        return None, str(error)
