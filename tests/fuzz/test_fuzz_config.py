"""Any text is a valid config, which can be written down and read back, or an error that names the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from few import attempt, few
from hypothesis import example, given
from hypothesis import strategies as st

from fedcmp.config import Config, from_yaml, load_config, to_yaml

SHIPPED = sorted((Path(__file__).parent.parent.parent / "configs").rglob("*.yaml"))


def keys_of(kind: type, prefix: str = "") -> list[str]:
    """Every key that has no keys below it."""
    keys: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = dataclasses.is_dataclass(hint)
        keys += keys_of(typing.cast(type, hint), f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys


KEYS = [*keys_of(Config), "aggregator", *(f"aggregator.{part}.kind" for part in ("fuse", "server", "local"))]
KEYS += ["aggregator.fuse.tau", "aggregator.fuse.evidence", "aggregator.server.lr"]
ODD = [
    "", "~", "yes", "-1", "1e400", ".nan", "-.inf", "007", "2020-99-99", "???", "{a: 1}", "[[1]]", "[a, ~]", "{1: 2}",
    "${run.seed}", "${x}", "a${b", "\\${x}", "${oc.env:NOWHERE}", "!!int abc", "!!python/object/apply:os.system [ls]",
    "!!set {a}", "9" * 5000, "[" * 2000, "{? [a] : b}", "a: b: c", "- x", "'", "\t", "%x",
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(ODD)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def check(make: Callable[[], Config], named: str) -> None:
    """Either an error that names ``named``, or a config that a resumed run reads as it was written."""
    config, message = attempt(make)
    if config is None:
        assert named in message
    else:
        assert from_yaml(to_yaml(config), "config.yaml") == config


@given(st.sampled_from(KEYS), st.sampled_from(ODD) | TEXTS | VALUES.map(lambda value: yaml.safe_dump(value)))
@few(40)
@example("run.name", "1e3")
@example("aggregator.server.kind", "[1]")
def test_an_override_is_taken_or_named(key: str, text: str) -> None:
    check(lambda: load_config(None, [f"{key}={text}"]), key.split(".")[-1])


@given(st.dictionaries(st.sampled_from(sorted({key.split(".")[0] for key in KEYS})) | TEXTS, VALUES, max_size=4))
@few(20)
def test_a_file_of_any_values_is_taken_or_refused(content: dict[str, Any]) -> None:
    check(lambda: from_yaml(yaml.safe_dump(content, allow_unicode=True), "mine.yaml"), "mine.yaml")


@given(st.sampled_from(SHIPPED), st.data())
@few(20)
def test_a_corrupted_file_is_taken_or_refused(path: Path, data: st.DataObject) -> None:
    text = path.read_text(encoding="utf-8")
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 20)))
    corrupted = text[:begin] + data.draw(TEXTS | st.sampled_from(ODD)) + text[end:]
    check(lambda: from_yaml(corrupted, "mine.yaml"), "mine.yaml")


@given(st.binary(max_size=200))
@few(15)
def test_a_file_of_any_bytes_is_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    check(lambda: load_config(path), "mine.yaml")
