"""docs/configuration.md is what the dataclasses say; ``python launch/site/settings.py`` writes it."""

from __future__ import annotations

import dataclasses
import runpy

from pages import ROOT

from fedcmp.config import Config

SCRIPT = runpy.run_path(str(ROOT / "launch" / "site" / "settings.py"))


def keys(value: object, prefix: str = "") -> list[str]:
    """Every key of a config, found without the script."""
    found = []
    for one in dataclasses.fields(value):  # type: ignore[arg-type]
        inside, key = getattr(value, one.name), f"{prefix}{one.name}"
        found += keys(inside, f"{key}.") if dataclasses.is_dataclass(inside) else [key]
    return found


def test_the_page_is_up_to_date_and_has_every_key() -> None:
    page = SCRIPT["PAGE"].read_text(encoding="utf-8")
    assert SCRIPT["page"]() == page, "the settings have changed: run python launch/site/settings.py"
    assert [key for key in keys(Config()) if f"\n|`{key}`|" not in page] == []


def test_choices_come_from_the_check() -> None:
    assert SCRIPT["_choices"]("run.device", str) == ["auto", "cpu", "cuda"]
