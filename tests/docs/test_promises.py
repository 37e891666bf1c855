"""Every promise names tests that exist."""

from __future__ import annotations

import re

from pages import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_promise_names_tests_that_exist() -> None:
    lines = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| promise", "| **"))]
    assert len(rows) > 30
    assert not [row for row in rows[1:] if not NAMED.search(row)]
    wrong = []
    for file, test in NAMED.findall("\n".join(rows)):
        path = ROOT / file
        if not path.is_file() or f"\ndef {test}(" not in path.read_text(encoding="utf-8"):
            wrong.append(f"{file}::{test}")
    assert not wrong, "\n".join(wrong)
