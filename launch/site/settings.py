"""Writes docs/configuration.md from the dataclasses that hold the settings: ``python launch/site/settings.py``.

What it says of a setting is the string below its field, its type and its default. Which words a setting takes is asked
of the check itself, with a word that is none. ``tests/docs/test_settings_page.py`` fails when the page is not this.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedcmp.aggregation.presets import FUSES, LOCALS, PRESETS, SERVERS
from fedcmp.config import Config, amend
from fedcmp.errors import ConfigError

PAGE = Path(__file__).parent.parent.parent / "docs" / "configuration.md"
HEAD = """\
<!-- Written by launch/site/settings.py from the dataclasses; edit the strings below their fields instead. -->

# Settings

Every setting, its type and its default. The defaults are the embedded demo. A config is a YAML file with the keys that
differ from them, and `key=value` on the command line overrides both. Numbers are those of YAML 1.2 (`010` is ten). On
the command line a value is taken as typed, `#` and colons included, unless it begins with a bracket or a quote:

```bash
fedcmp train configs/demo/scenes.yaml federation.rounds=4 optimizer.lr=1e-2
```

```yaml
federation:
  rounds: 20
  batch_size: 32
optimizer:
  lr: 1e-2
aggregator: fedavgm
```

A key, a word or a number that cannot be is named with the nearest valid one before a model is loaded. In a file
`${oc.env:NAME,default}` reads an environment variable. `config.yaml` in a run folder has all settings of that run and
is a config itself; `fedcmp validate FILE` checks one without running it.

"""
PARTS_HEAD = """\
## Options of the methods

`aggregator.name` picks a row of [the table of methods](methods.md), and a row is made of three parts. Their options are
keys below `aggregator.local`, `aggregator.fuse` and `aggregator.server`; `method` exchanges a part.

```bash
fedcmp train aggregator=fedadam aggregator.server.lr=0.03
fedcmp train aggregator=krum aggregator.fuse.byzantine=2
```

"""
NO_WORD = "no such word"
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "whole number or list of them"}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in dataclasses.fields(Config):
        value = getattr(Config(), section.name)
        parts += [f"## {section.name}\n\n{_summary(type(value))}\n\n", *_settings(section.name, value)]
    parts.append(PARTS_HEAD)
    for key, table in (("local", LOCALS), ("fuse", FUSES), ("server", SERVERS)):
        parts += _options(key, table)
    return "".join(parts).rstrip("\n") + "\n"


def _settings(prefix: str, value: Any) -> Iterator[str]:
    hints, notes = typing.get_type_hints(type(value)), field_notes(type(value))
    for one in dataclasses.fields(value):
        key, default = f"{prefix}.{one.name}", getattr(value, one.name)
        if dataclasses.is_dataclass(default):
            yield from _settings(key, default)
            continue
        words = [f"`{word}`" for word in _choices(key, hints[one.name])]
        listed = "" if all(word in notes[one.name] for word in words) else f"\n\nOne of {', '.join(words)}."
        either = hints[one.name] is Any and default is None
        told = "whole number, word, or keys and values" if either else kind(hints[one.name])
        yield f"### `{key}`\n\n*{told}, default {shown(default)}*\n\n{notes[one.name]}{listed}\n\n"


def _options(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    for name, part in table.items():
        fields = [one for one in dataclasses.fields(part) if one.init]
        presets = {row: preset.options for row, preset in PRESETS.items() if getattr(preset, key) is part}
        rows = [
            _row(row, {one.partition(".")[2]: value for one, value in own.items() if one.startswith(key)})
            for row, own in presets.items()
        ]
        yield f"### `aggregator.{key}.kind={name}`\n\nUsed by {', '.join(rows)}."
        hints, notes = typing.get_type_hints(part), field_notes(part)
        if not fields:
            yield " It has no options.\n\n"
            continue
        yield "\n\n| option | type | default | what it does |\n|---|---|---|---|\n"
        for one in fields:
            note = notes[one.name].replace("|", "\\|")
            yield f"| `{one.name}` | {kind(hints[one.name])} | {shown(one.default)} | {note} |\n"
        yield "\n"


def _row(row: str, own: Mapping[str, Any]) -> str:
    """A row of the table of methods, with what it sets otherwise than the part's defaults."""
    return f"`{row}`" + (f" (with {', '.join(f'{key} {shown(value)}' for key, value in own.items())})" if own else "")


def field_notes(owner: type) -> dict[str, str]:
    """The string below each field of a dataclass, on one line, with those that it inherits."""
    (base, *_), found = owner.__bases__, {}
    if dataclasses.is_dataclass(base):
        found = field_notes(base)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(node.target, ast.Name)
            found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def kind(hint: Any) -> str:
    """A type in words."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (inner,) = (one for one in typing.get_args(hint) if one is not type(None))
        return f"{kind(inner)} or unset"
    if typing.get_origin(hint) is list:
        return f"list of {kind(typing.get_args(hint)[0])}s"
    if typing.get_origin(hint) is dict:
        return "keys and values"
    return KINDS[hint]


def shown(value: Any) -> str:
    """A default as one types it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if value == "":
        return "empty"
    return f"`{value}`" if value not in ([], {}) else "none"


def _choices(key: str, hint: Any) -> list[str]:
    """The words that the check of ``key`` names when it is given another; none where it takes any."""
    if hint is not str:
        return []
    try:
        amend(Config(), [f"{key}={NO_WORD}"])
    except ConfigError as error:
        listed = re.search(r"choices: ([^)]*?)(\)|;|$)", str(error))
        return listed[1].split(", ") if listed else []
    return []


def _summary(owner: type) -> str:
    return " ".join((inspect.getdoc(owner) or "").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
