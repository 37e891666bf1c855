"""Writes docs/configuration.md from the dataclasses that hold the settings: ``python launch/site/settings.py``.

What it says of a setting is the string below its field, its type and its default. The choices of a setting come from
the error for a wrong one. ``tests/docs/test_settings_page.py`` fails when the page is out of date.
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

The defaults train on the embedded demo. A config is a YAML file with the keys that differ; `key=value` on the command
line overrides both:

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

`config.yaml` in a run folder is a config itself. `fedcmp validate FILE` checks a file: an unknown key or value is named
with the nearest valid one. Numbers are those of YAML 1.2.
`${oc.env:NAME,default}` in a file reads an environment variable. On the command line a value is taken as typed, `#` and
colons included, unless it begins with a bracket or a quote. A default of *unset* may be given as `null`.

"""
PARTS_HEAD = """\
## Options of the methods

The parts of [a method](methods.md) have options below `aggregator.local`, `aggregator.fuse` and `aggregator.server`.

"""
COLUMNS = "|key|type|default|what it does|\n|---|---|---|---|\n"
NO_WORD = "no such word"
KINDS = {str: "text", int: "integer", float: "number", bool: "true/false", Any: "any"}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in dataclasses.fields(Config):
        value = getattr(Config(), section.name)
        parts += [f"## {section.name}\n\n{_summary(type(value))}\n\n{COLUMNS}", *_settings(section.name, value), "\n"]
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
        note, words = notes[one.name], [f"`{word}`" for word in _choices(key, hints[one.name])]
        listed = all(word in note for word in words) or "](" in note  # there or on the page that it links
        yield _line(key, hints[one.name], default, note if listed else f"{note} One of {', '.join(words)}.")


def _options(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    """A table of the options of all parts of one kind."""
    yield f"### aggregator.{key}\n\n|part{COLUMNS.replace('---|', '---|---|', 1)}"
    for name, part in table.items():
        rows = [_row(row, preset.options, key) for row, preset in PRESETS.items() if getattr(preset, key) is part]
        label = ", ".join([f"`{name}`", *filter(None, rows)])
        hints, notes = typing.get_type_hints(part), field_notes(part)
        fields = [one for one in dataclasses.fields(part) if one.init]
        for one in fields:
            yield f"|{label}{_line(one.name, hints[one.name], one.default, notes[one.name])}"
            label = ""
        if not fields:
            yield f"|{label}|none||||\n"
    yield "\n"


def _line(key: str, hint: Any, default: Any, note: str) -> str:
    """A row of a table."""
    cells = (f"`{key}`", kind(hint), shown(default), note.replace("|", "\\|"))
    return f"|{'|'.join(cells)}|\n"


def _row(row: str, options: Mapping[str, Any], key: str) -> str:
    """What a row of the table of methods sets otherwise than the defaults of its part ``key``; empty: nothing."""
    own = [f"{one.partition('.')[2]}={shown(value)}" for one, value in options.items() if one.startswith(key)]
    return f"in `{row}` {', '.join(own)}" if own else ""


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
        return kind(inner)
    if typing.get_origin(hint) in (list, dict):
        return "list" if typing.get_origin(hint) is list else "map"
    return KINDS[hint]


def shown(value: Any) -> str:
    """A default as it is written in a config."""
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
    """The choices that the error for a wrong value of ``key`` names; none where any text is valid."""
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
