"""Any text is a valid config, which can be written down and read back, or an error that names the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """A shipped file, of which some characters are others."""
    text = draw(st.sampled_from(SHIPPED)).read_text(encoding="utf-8")
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(len(text), begin + 20)))
    return (text[:begin] + draw(TEXTS | st.sampled_from(ODD)) + text[end:]).encode()


SECTIONS = st.dictionaries(st.sampled_from(sorted({key.split(".")[0] for key in KEYS})) | TEXTS, VALUES, max_size=4)


@pytest.mark.parametrize("contents", [
    SECTIONS.map(lambda content: yaml.safe_dump(content, allow_unicode=True).encode()),
    corrupted(),
    st.binary(max_size=200),
], ids=["values", "corrupted", "bytes"])  # fmt: skip
@given(data=st.data())
@few(20)
def test_a_file_of_anything_is_taken_or_refused(tmp_path: Path, contents: Any, data: st.DataObject) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data.draw(contents))
    check(lambda: load_config(path), "mine.yaml")
