"""What a 1.x release keeps (docs/promises.md): nothing of interfaces.json goes away.

FEDCMP_REWRITE_GOLDEN=1 adds what is new to the file, and takes nothing out of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedcmp
from fedcmp.aggregation.presets import PRESETS
from fedcmp.cli import build_parser
from fedcmp.config import Config
from fedcmp.data.scenarios.partition import SCENARIOS
from fedcmp.data.sources import SOURCES

FILE = Path(__file__).with_name("interfaces.json")
KEPT: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def options(parser: argparse.ArgumentParser, name: str = "fedcmp") -> Iterator[str]:
    """Every command and option, as typed."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, below in action.choices.items():
                yield f"{name} {command}"
                yield from options(below, f"{name} {command}")
        else:
            for option in action.option_strings:
                yield from (f"{name} {option}{choice}" for choice in ("", *(f"={one}" for one in action.choices or ())))


def keys(value: object, name: str = "") -> Iterator[str]:
    """Every key of a config."""
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        key, below = f"{name}{field.name}", getattr(value, field.name)
        yield from keys(below, f"{key}.") if dataclasses.is_dataclass(below) else [key]


def names() -> Iterator[str]:
    """Every public name, and the parameters of the functions."""
    for name in fedcmp.__all__:
        yield name
        if inspect.isfunction(found := getattr(fedcmp, name)):
            yield from (f"{name}({parameter})" for parameter in inspect.signature(found).parameters)


def found(run: Path) -> dict[str, list[str]]:
    """The interfaces as they are now."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [{key for key in record if not key.startswith(("client/", "aggregator/"))} for record in records]
    said = {
        "command line": options(build_parser()),
        "config": keys(Config()),
        "methods": PRESETS,
        "scenarios": SCENARIOS,
        "sources": SOURCES,
        "python": names(),
        "run folder": (path.name for path in run.iterdir() if path.name[0] != "."),
        "summary.json": json.loads((run / "summary.json").read_text(encoding="utf-8")),
        "metrics.jsonl": set.union(*records),
    }
    return {interface: sorted(set(values)) for interface, values in said.items()}


def test_nothing_that_was_released_goes_away(tiny_run: Path) -> None:
    now = found(tiny_run)
    if os.environ.get("FEDCMP_REWRITE_GOLDEN") == "1":
        joined = {interface: sorted({*KEPT.get(interface, ()), *values}) for interface, values in now.items()}
        FILE.write_text(json.dumps(joined, indent=1) + "\n", encoding="utf-8")
        pytest.skip("written")
    gone = {interface: sorted({*values} - {*now[interface]}) for interface, values in KEPT.items()}
    assert KEPT.keys() == now.keys()
    assert not {interface: names for interface, names in gone.items() if names}
