"""Every promise names tests that are there."""

from __future__ import annotations

import ast
import re

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


def is_there(name: str) -> bool:
    """Whether a file defines a test of that name, where pytest looks for it."""
    file, _, test = name.partition("::")
    if not (ROOT / file).is_file():
        return False
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return any(isinstance(one, ast.FunctionDef) and one.name == test for one in body)


def test_every_test_that_is_named_is_there() -> None:
    names = sorted({name for _, tests in rows() for name in NAMED.findall(tests)})
    assert [name for name in names if not is_there(name)] == []


@pytest.mark.parametrize("name", ["tests/test_resume.py::test_that_is_not_there", "tests/test_not_there.py::test_any"])
def test_a_name_that_is_wrong_would_be_seen(name: str) -> None:
    assert not is_there(name)
