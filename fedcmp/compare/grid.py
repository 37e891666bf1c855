"""What is tuned: for every method as many runs, over the local learning rate and one option of its own.

Both have an order, the likeliest value first, and a budget of B takes the first B pairs of one path through the grid::

    own option      1st  2nd  3rd
    rate x 1         1    3    7
    rate x 2         2    4    8
    rate x 1/2       5    6    9         then rate x 4: 10 11 12, x 1/4: 13 14 15, ...

so that any budget tries about as many values of one as of the other. Where CONFIG or the method's overrides set the
option, as many learning rates alone are tried. Where other local optimizers are tuned, too, each has the same budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from fedcmp.aggregation import presets
from fedcmp.aggregation.presets import PRESETS, part_name
from fedcmp.config import Config
from fedcmp.errors import ConfigError

LR, OPTIMIZER = "optimizer.lr", "optimizer.name"
BATCHES = "centralized.batch_sizes"
FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.125)
"""Learning rates that are tried, in units of the config's own."""

Options = Mapping[str, Any]
"""Override key -> value."""
A = TypeVar("A")
B = TypeVar("B")


class Option(NamedTuple):
    """What is tuned beside the learning rate."""

    key: str
    """After ``aggregator.``."""
    values: tuple[float, ...]
    """The preset's own first."""


SERVERS = {name: Option(f"server.{step.tuned[0]}", step.tuned[1]) for name, step in presets.SERVERS.items()}
"""Server step -> what is tuned; for a method whose server step was exchanged (``aggregator.server.kind``), too."""

OPTIONS = {name: Option(*row.grid) for name, row in PRESETS.items()}
"""Preset -> what is tuned."""

MOST = len(FACTORS) * min(len(option.values) for option in OPTIONS.values())
"""The largest budget that every method can use."""


def method_grid(config: Config, budget: int, lr_held: bool) -> list[Options]:
    """The tuning runs of a method.

    Args:
        config: the method's, resolved.
        budget: how many; 1: the config unchanged.
        lr_held: whether the method's overrides set the learning rate.

    Raises:
        ConfigError: a budget above ``MOST``, or one above 1 where the learning rate is held.
    """
    if budget == 1:
        return [{}]
    if budget > MOST:
        raise ConfigError(f"--budget must be at most {MOST}, got {budget}")
    if lr_held:
        raise ConfigError(f"{LR} cannot be set here: --budget {budget} tunes it")
    option = own_option(config)
    if option is None:
        return [{LR: lr} for lr in itertools.islice(rates(config.optimizer.lr), budget)]
    lrs = [config.optimizer.lr * factor for factor in FACTORS]
    pairs = path(lrs, option.values)[:budget]
    return [{LR: lr, f"aggregator.{option.key}": value} for lr, value in pairs]


def own_option(config: Config) -> Option | None:
    """What is tuned beside the learning rate; None where the config sets it."""
    aggregator = config.aggregator
    option, row = OPTIONS[aggregator.name], PRESETS[aggregator.name]
    part, _, name = option.key.partition(".")
    default = part_name(getattr(row, part))
    if getattr(aggregator, part).get("kind", default) != default:  # its option may be gone
        option = SERVERS[aggregator.server.get("kind", part_name(row.server))]
        part, _, name = option.key.partition(".")
    return None if name in getattr(aggregator, part) else option


def centralized_grid(config: Config, budget: int) -> list[Options]:
    """The tuning runs of the upper bound: ``centralized.batch_sizes`` in their order, with ``centralized.lrs``, those
    that are near ``optimizer.lr`` first.

    Raises:
        ConfigError: the two lists make fewer pairs than the budget.
    """
    sizes, own = list(dict.fromkeys(config.centralized.batch_sizes)), config.optimizer.lr
    if budget == 1:
        return [{BATCHES: sizes[:1]}]
    lrs = sorted(set(config.centralized.lrs), key=lambda lr: (round(abs(math.log(lr / own)), 6), -lr))
    pairs = path(lrs, sizes)
    if len(pairs) < budget:
        raise ConfigError(
            f"centralized.batch_sizes and centralized.lrs must make at least {budget} pairs (--budget), "
            f"got {len(pairs)}; add values, or use --no-bounds"
        )
    return [{LR: lr, BATCHES: [size]} for lr, size in pairs[:budget]]


def local_grid(config: Config, budget: int) -> list[Options]:
    """The tuning runs of the lower bound: learning rates."""
    return [{}] if budget == 1 else [{LR: lr} for lr in itertools.islice(rates(config.optimizer.lr), budget)]


def with_optimizers(
    config: Config, others: Sequence[tuple[str, float]], grid: Callable[[Config], list[Options]]
) -> list[Options]:
    """What ``grid`` tries with the config's own local optimizer, then with each of ``others`` around its own rate.

    Raises:
        ConfigError: two of ``others`` try the same.
    """
    found = list(grid(config))
    for name, lr in others:
        lrs = [rate * lr / config.optimizer.lr for rate in config.centralized.lrs]
        other = replace(
            config,
            optimizer=replace(config.optimizer, name=name, lr=lr),
            centralized=replace(config.centralized, lrs=lrs),
        )
        found += [{OPTIMIZER: name, LR: lr, **options} for options in grid(other)]
    if twice := next((one for place, one in enumerate(found) if one in found[:place]), None):
        raise ConfigError(f"--optimizers: {twice[OPTIMIZER]}={twice[LR]:g} is tried twice; take centres further apart")
    return found


def rates(own: float) -> Iterator[float]:
    """Learning rates by powers of two up to eight times ``own`` and down to an eighth, then those between them.

    >>> [round(rate, 3) for rate in itertools.islice(rates(1.0), 9)]
    [1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.125, 1.414, 0.707]
    """
    yield from (own * factor for factor in FACTORS)
    for parts in (2, 4, 8):
        for number in range(1, 3 * parts, 2):
            for sign in (1, -1):
                yield float(f"{own * 2 ** (sign * number / parts):.4g}")


def path(first: Sequence[A], second: Sequence[B]) -> list[tuple[A, B]]:
    """All pairs, square after square from the corner of the likeliest values.

    >>> path(["a", "b", "c"], [1, 2])
    [('a', 1), ('b', 1), ('a', 2), ('b', 2), ('c', 1), ('c', 2)]
    """
    places = itertools.product(range(len(first)), range(len(second)))
    order = sorted(places, key=lambda one: (max(one), one[1] == max(one), one[1], one[0]))
    return [(first[row], second[column]) for row, column in order]
