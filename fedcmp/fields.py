"""What a user wrote, against the fields that it is meant for: each scalar must be what its field says."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from fedcmp.credentials import find_secret, holds_secret
from fedcmp.errors import ConfigError, nearest

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""What else people write for true and false."""
MISSING = "???"
"""OmegaConf's word for a value that is yet to come; merging it would change nothing without a word."""
SECRETS_BELONG = (
    "keys and passwords do not belong in a config, which is written to the run folder: put them into the environment"
)


def as_fields(kind: type, values: Mapping[Any, Any], words: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """The keys and values of a dataclass, as YAML containers: texts as they are written, ``007`` too.

    Args:
        kind: the dataclass.
        values: what YAML makes of the text.
        words: the same with every scalar as it is written; what it lacks is taken from ``values``.
        where: what errors call the text.
        prefix: what stands before the keys.

    Raises:
        ConfigError: a key is unknown, or its value is none of the kind of its field.
    """
    hints = typing.get_type_hints(kind)
    known = {one.name: hints[one.name] for one in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            hint = SECRETS_BELONG if holds_secret(str(key)) else nearest(str(key), known)
            raise ConfigError(f"{where}: unknown key `{name}`; {hint}")
        word = words.get(key, value) if isinstance(words, Mapping) else value
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: `{name}` holds keys of its own, got {value!r}")
            found[key] = as_fields(typing.cast(type, known[key]), value, word, where, f"{name}.")
        else:
            found[key] = _as(known[key], value, word, name, where)
    return found


def check_texts(value: Any, key: str = "") -> None:
    """All texts of a config, wherever it comes from, can be written down, read back, and shown to others.

    Args:
        value: a dataclass, or what stands in one.
        key: what errors call it.

    Raises:
        ConfigError: a text holds a secret, a character that no file can hold, or what would be read as a reference.
    """
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        for name, one in value.items():
            check_texts(one, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for one in value:
            check_texts(one, key)
    elif isinstance(value, str):
        if what := find_secret(value):
            raise ConfigError(f"{key} holds {what}: {SECRETS_BELONG}")
        if any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in value):
            raise ConfigError(f"{key} holds a character that cannot be written down, got {value!r}")
        if "${" in value or value == MISSING:
            raise ConfigError(f"{key} would be read as a reference to another value, got {value!r}")


def _as(hint: Any, value: Any, word: Any, name: str, where: str) -> Any:
    if value == MISSING:
        raise ConfigError(f"{where}: {name} has no value, got {MISSING}")
    kinds = [one for one in typing.get_args(hint) if one is not type(None)] or [hint]
    if typing.get_origin(hint) is list:
        if isinstance(value, str) and "${" in value:
            return value  # a reference may be to a list
        if not isinstance(value, list):
            shown = value if isinstance(value, dict) else word
            raise ConfigError(f"{where}: {name} is a list and given whole, as in {name}=[...], got {shown!r}")
        same = isinstance(word, list) and len(word) == len(value)
        texts = word if same else value
        return [_as(kinds[0], one, text, name, where) for one, text in zip(value, texts, strict=True)]
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}: `{name}` holds keys of its own, got {value!r}")
        return value
    optional = type(None) in typing.get_args(hint)
    return value if hint is Any or (optional and value is None) else _scalar(kinds[0], value, word, name, where)


def _scalar(kind: type, value: Any, word: Any, name: str, where: str) -> Any:
    if kind is str and isinstance(word, str) and not isinstance(value, dict | list | None):
        return word
    if isinstance(value, str) and "${" in value:
        return value
    if kind is bool and isinstance(value, str):
        value = SWITCHES.get(value.lower(), value)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(
            f"{where}: {name}: expected {EXPECTED[kind]}, got {word if value is not None else 'nothing'!r}"
        )
    return value
