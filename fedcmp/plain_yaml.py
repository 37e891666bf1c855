"""YAML as plain containers, bounded: a few lines of it can name themselves, or stand for billions of values."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from fedcmp.errors import ConfigError

MOST_VALUES, DEEPEST = 100_000, 32
"""Of one text, its aliases written out."""


class Parsed(NamedTuple):
    """The same text, read twice."""

    values: Any
    """As YAML means it: numbers, truth values, dates, texts."""
    words: Any
    """With every scalar as it is written."""


def parse_yaml(text: str, where: str) -> Parsed:
    """Reads YAML; no tag makes an object.

    Args:
        text: what was written.
        where: what errors call it.

    Raises:
        ConfigError: it is no YAML, or holds too much, too deep, or itself.

    >>> parse_yaml("{lr: 1e-3, name: 007}", "mine.yaml")
    Parsed(values={'lr': '1e-3', 'name': 7}, words={'lr': '1e-3', 'name': '007'})
    """
    try:
        values = yaml.safe_load(text)
        words = yaml.load(text, Loader=yaml.BaseLoader)
    except Exception as error:  # YAMLError, and what its readers of dates, numbers and tags raise
        raise ConfigError(f"{where} cannot be read as YAML: {str(error) or type(error).__name__}") from error
    _bounded(values, where)
    return Parsed(values, words)


def _bounded(value: Any, where: str) -> None:
    left, waiting = MOST_VALUES, [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ConfigError(
                f"{where} cannot be read as YAML: more than {MOST_VALUES:,} values, or deeper than {DEEPEST}; an "
                "alias may name what it stands in"
            )
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting.extend((part, depth + 1) for part in inner)
