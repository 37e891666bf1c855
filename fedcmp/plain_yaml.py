"""Reads YAML, and fits what it says to the fields of dataclasses.

Numbers are those of YAML 1.2: ``010`` is ten and ``1e-3`` a number; ``1:30``, ``yes`` and dates are texts. A field that
takes a text gets it as it was typed: ``run.name=007`` is ``"007"``.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

import yaml

from fedcmp.credentials import find_secret, holds_secret
from fedcmp.errors import ConfigError, nearest

NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""Further words for the value of a field that is true or false."""
INT = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
"""Section 10.3.2 of YAML 1.2."""
MISSING = "???"
"""OmegaConf's word for a value that is yet to come."""
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "keys and values"}
NO_SECRETS = "keys and passwords belong into the environment, not into a config, which is written to the run folder"


class Plain(str):
    """A scalar without quotes: its type depends on the field that it is meant for."""


class _Loader(yaml.BaseLoader):
    """Makes dicts, lists and texts, whatever a tag says; a key that is given twice is an error."""

    def construct_scalar(self, node: Any) -> str:
        return (Plain if node.style is None else str)(super().construct_scalar(node))

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Dicts, lists and texts; a text is ``Plain`` if it has no quotes. An empty document is an empty dict.

    Args:
        text: YAML.
        where: what errors call it.

    Raises:
        ConfigError: it is no YAML, or gives a key twice.

    >>> resolve(parse_yaml("{lr: 1e-3, name: 007, quoted: '007'}", "mine.yaml"))
    {'lr': 0.001, 'name': 7, 'quoted': '007'}
    """
    try:
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line, what = f", line {mark.line + 1}" if mark else "", getattr(error, "problem", None) or error
        raise ConfigError(f"{where}{line} cannot be read as YAML: {what}") from error
    return {} if found is None else found


def resolve(value: Any) -> Any:
    """``Plain`` texts as null, truth values and numbers, in lists and dicts too."""
    if isinstance(value, dict):
        return {str(key): resolve(one) for key, one in value.items()}
    if isinstance(value, list):
        return [resolve(one) for one in value]
    if not isinstance(value, Plain):
        return value
    if value in NULLS:
        return None
    if value in BOOLS:
        return BOOLS[value]
    if INT.fullmatch(value):
        return int(value, 0 if value[1:2] in ("o", "x") else 10)
    if FLOAT.fullmatch(value):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return str(value)


def as_fields(kind: type, values: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """The keys and values for a dataclass, as plain containers.

    Args:
        kind: the dataclass.
        values: as ``parse_yaml`` returns them.
        where: what errors call the text.
        prefix: of the keys, in errors.

    Raises:
        ConfigError: a key is unknown, or its value has not the type of its field.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'a config'} expects keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = {one.name: hints[one.name] for one in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            inside = [f"{name}.{key}" for name, own in known.items() if key in getattr(own, "__dataclass_fields__", ())]
            hint = f"did you mean {' or '.join(inside)}?" if inside else nearest(str(key), known)
            hint = NO_SECRETS if holds_secret(str(key)) else hint
            raise ConfigError(f"{where}: unknown key `{prefix}{key}`; {hint}")
    return {key: _as(known[key], value, f"{prefix}{key}", where) for key, value in values.items()}


def _as(hint: Any, value: Any, name: str, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return as_fields(typing.cast(type, hint), value, where, f"{name}.")
    if value == MISSING:
        raise ConfigError(f"{where}: {name} has no value, got {MISSING}")
    if isinstance(value, str) and "${" in value:
        return str(value)  # OmegaConf fills it in
    kinds, found = typing.get_args(hint), resolve(value)
    kind = typing.get_origin(hint) if typing.get_origin(hint) in (list, dict) else (kinds or (hint,))[0]
    if kind is list and isinstance(value, list):
        return [_as(kinds[0], one, name, where) for one in value]
    if kind is Any or (found is None and type(None) in kinds):
        return found
    if kind is str and found is not None and isinstance(value, str):
        return str(value)
    if kind is bool and isinstance(found, str):
        found = SWITCHES.get(found.lower(), found)
    if not isinstance(found, (int, float) if kind is float else kind) or (isinstance(found, bool) and kind is not bool):
        expected = f"a list, as in {name}=[...]" if kind is list else EXPECTED[kind]
        raise ConfigError(f"{where}: {name} expects {expected}, got {value!r}")
    return found


def check_texts(value: Any, key: str = "") -> None:
    """Refuses secrets, and what reading the written config again would take for a reference.

    Args:
        value: a dataclass, or what a field of it has.
        key: what errors call it.

    Raises:
        ConfigError: a text has one of the two.
    """
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for name, one in value.items():
            check_texts(one, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for one in value:
            check_texts(one, key)
    elif isinstance(value, str):
        if what := find_secret(value):
            raise ConfigError(f"{key} has {what}: {NO_SECRETS}")
        if "${" in value or value == MISSING:
            raise ConfigError(f"{key} would be read as a reference to another value, got {value!r}")
