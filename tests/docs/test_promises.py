"""Every promise names tests that are there: pytest finds each of them by its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from written import ROOT

PAGE = ROOT / "docs" / "promises.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py::\w+)`")
ELSEWHERE = "differential_privacy.md"
"""A line may leave its tests to a page of its own."""


def rows() -> list[list[str]]:
    """The lines of all tables: what is promised, and its tests."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "we promise" and set(row[0]) != {"-"}]


def test_every_promise_names_a_test() -> None:
    assert len(rows()) > 30
    for promise, *tests in rows():
        assert len(tests) == 1, f"a line of two cells was expected: {promise}"
        named = NAMED.findall(tests[0])
        assert named or ELSEWHERE in promise, f"nothing would break: {promise}"
        assert not NAMED.sub("", tests[0]).strip(" ,"), f"not the name of a test: {tests[0]}"


def test_every_test_that_is_named_is_found() -> None:
    names = sorted({name for _, tests in rows() for name in NAMED.findall(tests)})
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *names]
    done = subprocess.run(words, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert name in done.stdout, f"{name} was not collected"


@pytest.mark.parametrize("name", ["tests/test_resume.py::test_that_is_not_there", "tests/test_not_there.py::test_any"])
def test_a_name_that_is_wrong_would_be_seen(name: str) -> None:
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", name]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, timeout=600).returncode != 0
