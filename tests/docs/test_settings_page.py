"""docs/configuration.md is what the dataclasses say. ``python launch/site/settings.py`` writes it anew."""

from __future__ import annotations

import dataclasses
import runpy

import pytest
from written import ROOT

from fedcmp.aggregation.presets import FUSES, LOCALS, SERVERS
from fedcmp.config import Config

SCRIPT = runpy.run_path(str(ROOT / "launch" / "site" / "settings.py"))
PAGE = SCRIPT["PAGE"].read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    assert SCRIPT["page"]() == PAGE, "the settings have changed: run python launch/site/settings.py"


def keys(value: object, prefix: str = "") -> list[str]:
    """Every leaf of a config, found without the script."""
    found = []
    for one in dataclasses.fields(value):  # type: ignore[arg-type]
        inside, key = getattr(value, one.name), f"{prefix}{one.name}"
        found += keys(inside, f"{key}.") if dataclasses.is_dataclass(inside) else [key]
    return found


def test_every_key_has_a_place() -> None:
    assert len(keys(Config())) > 80
    assert [line.removeprefix("### `").rstrip("`") for line in PAGE.splitlines() if line.startswith("### `")] == [
        *keys(Config()),
        *(f"aggregator.{part}.method={name}" for part, table in zip(
            ("local", "fuse", "server"), (LOCALS, FUSES, SERVERS), strict=True
        ) for name in table),
    ]  # fmt: skip


@pytest.mark.parametrize(("key", "words"), [
    ("run.device", ["auto", "cpu", "cuda"]),
    ("aggregator.weights", ["samples", "tokens", "uniform"]),
    ("data.on_overlap", ["drop", "error", "ignore"]),
    ("optimizer.schedule", ["constant", "cosine", "linear"]),
])  # fmt: skip
def test_what_a_setting_takes_is_asked_of_its_check(key: str, words: list[str]) -> None:
    assert SCRIPT["_choices"](key, str) == words
    part = PAGE.split(f"### `{key}`\n")[1].split("### ")[0]
    assert all(f"`{word}`" in part for word in words)
