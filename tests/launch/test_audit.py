"""What ``launch/audit`` says: holes, versions that differ, and that nobody could be asked."""

from __future__ import annotations

import doctest
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pins", ROOT / "launch" / "pins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOOL", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    return module


def service(pins: ModuleType, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> None:
    """A pip-audit that answers for each service; None: it writes nothing."""

    def run(words: Sequence[str], **options: Any) -> Any:
        if "install" not in words:
            assert "--no-deps" in words, "nothing of a package is run or built to audit it"
            answer = answers[words[words.index("-s") + 1]]
            if answer is not None:
                Path(words[words.index("-o") + 1]).write_text(json.dumps({"dependencies": answer}))
        return type("Done", (), {"returncode": 0, "stderr": "ConnectionError: no such host\n"})()

    monkeypatch.setattr(pins.subprocess, "run", run)


KNOWN = {"name": "torch", "version": "2.13.0", "vulns": []}
HOLE = {"name": "jinja2", "version": "3.1.6", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["3.1.7"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(("answers", "code", "said"), [
    ({"pypi": [KNOWN]}, 0, "known holes, pypi: none in 1 packages"),
    ({"pypi": [KNOWN, HOLE]}, 1, "jinja2 3.1.6: PYSEC-2026-1, mended in 3.1.7"),
    ({"pypi": [UNKNOWN], "osv": [KNOWN]}, 0, "known holes, osv: none in 1 packages"),
    ({"pypi": [UNKNOWN], "osv": None}, 3, "NOT AUDITED: no advisory service could be asked"),
    ({"pypi": None, "osv": None}, 3, "pypi: could not be asked: it does not answer: ConnectionError: no such host"),
])  # fmt: skip
def test_what_is_not_known_is_no_clean_bill(
    pins: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: Any,
    code: int,
    said: str,
) -> None:
    service(pins, monkeypatch, answers)
    monkeypatch.setattr(pins, "compare", lambda *arguments: pins.Versions([], []))
    assert pins.main([]) == code
    assert said in capsys.readouterr().out


def test_versions_that_differ_are_named(
    pins: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service(pins, monkeypatch, {"pypi": [KNOWN]})
    monkeypatch.setattr(pins, "compare", lambda *arguments: pins.Versions(["attrs 1, pinned ==2"], ["loose"]))
    assert pins.main([]) == 1
    assert pins.main(["--offline"]) == 1
    out = capsys.readouterr().out
    assert "1 installed in another version\n  attrs 1, pinned ==2" in out
    assert "1 needed and not pinned\n  loose" in out
    assert "known holes: not asked for" in out


def test_its_examples_hold(pins: ModuleType) -> None:
    found = doctest.testmod(pins)
    assert (found.failed, found.attempted > 2) == (0, True)


def test_all_that_is_needed_is_pinned(pins: ModuleType) -> None:
    wanted = pins.needed("fedcmp", ["dev"])
    assert {"torch", "numpy", "pytest", "mkdocs"} <= wanted, "what packages need in turn is found"
    assert pins.compare(pins.read_pins((ROOT / "constraints.txt").read_text()), {}, wanted).loose == []


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_no_package_is_pinned_twice(version: str) -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = [Requirement(line) for line in lines]
    names = [pin.name for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": version})]
    assert len(names) == len(set(names))
    assert {"hypothesis", "torch"} <= set(names)
