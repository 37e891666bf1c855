"""YAML as plain containers, bounded: a few lines of it can name themselves, or stand for billions of values."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer

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
        ConfigError: it is no YAML, gives a key twice, or holds too much, too deep, or itself.

    >>> parse_yaml("{lr: 1e-3, name: 007}", "mine.yaml")
    Parsed(values={'lr': '1e-3', 'name': 7}, words={'lr': '1e-3', 'name': '007'})
    """
    try:
        values = yaml.load(text, Loader=_Values)
        words = yaml.load(text, Loader=_Words)
    except _Repeated as error:
        raise ConfigError(f"{where}, {error}") from None
    except Exception as error:  # YAMLError, and what its readers of dates, numbers and tags raise
        raise ConfigError(f"{where} cannot be read as YAML: {str(error) or type(error).__name__}") from error
    _bounded(values, where)
    return Parsed(values, words)


class _Repeated(Exception):
    """A key stands twice in one place, of which YAML would take the last without a word."""


class _EachKeyOnce(Composer):
    """Refuses repeated keys, and knows what they are inside of. Not those that ``<<`` brings: they may be overruled."""

    _inside: list[str]

    def compose_node(self, parent: Any, index: Any) -> Any:
        name = [index.value] if isinstance(index, yaml.ScalarNode) else []
        self._inside += name
        node = super().compose_node(parent, index)
        del self._inside[len(self._inside) - len(name) :]
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                name = ".".join([*self._inside, key.value])
                raise _Repeated(
                    f"line {line}: {name} is given twice, first on line {lines[key.value]}; leave one of them"
                )
            lines[key.value] = line
        return node


class _Values(_EachKeyOnce, yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        yaml.SafeLoader.__init__(self, text)
        self._inside = []


class _Words(_EachKeyOnce, yaml.BaseLoader):
    def __init__(self, text: str) -> None:
        yaml.BaseLoader.__init__(self, text)
        self._inside = []


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
