"""YAML as plain containers, bounded: a few lines of it can name themselves, or stand for billions of values.

Numbers are those of YAML 1.2: ``010`` is ten and ``1e-3`` a number; ``1:30``, ``yes`` and dates are texts. PyYAML reads
YAML 1.1, where they are 8, a text, 90, true and dates.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer

from fedcmp.errors import ConfigError

MOST_VALUES, DEEPEST = 100_000, 32
"""Of one text, its aliases written out."""


class Parsed(NamedTuple):
    """The same text, read twice."""

    values: Any
    """As YAML means it: numbers, truth values, texts."""
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
    Parsed(values={'lr': 0.001, 'name': 7}, words={'lr': '1e-3', 'name': '007'})
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


def parse_value(text: str, where: str) -> Parsed:
    """Reads the value of a ``key=value``: YAML where it begins with a bracket or a quote, else one scalar, whole.

    Args:
        text: what follows the equals sign.
        where: what errors call it.

    Raises:
        ConfigError: as for ``parse_yaml``; or text follows the closing bracket or quote.

    >>> parse_value("exp #2: a", "run.name")
    Parsed(values='exp #2: a', words='exp #2: a')
    """
    text = text.strip()
    if text[:1] not in ("[", "{", "'", '"'):
        loader = _Values("")
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        try:
            return Parsed(loader.construct_object(yaml.ScalarNode(tag, text)), text)
        except ValueError as error:  # Python reads at most 4,300 digits
            raise ConfigError(f"{where} cannot be read as a number: {error}") from error
    parsed = parse_yaml(text, where)
    node = yaml.compose(text, Loader=_Words)
    if node is not None and (rest := text[node.end_mark.index :]):
        raise ConfigError(f"{where} ends before {rest.strip()!r}; put the whole value in quotes")
    return parsed


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

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text[1:2] in ("o", "x") else 10)


_Values.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (  # section 10.3.2 of YAML 1.2; and "<<", which 1.1 has
    ("null", r"~|null|Null|NULL|", ["", *"~nN"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Values.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Values.add_constructor("tag:yaml.org,2002:int", _Values.construct_yaml_int)


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
