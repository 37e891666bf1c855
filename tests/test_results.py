"""RESULTS.md is what its script writes from the benchmarks' files, and each of these says where it comes from."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jinja2
import pytest
import record
import write_results

from fedcmp.report.formatting import markdown

FILES = sorted(write_results.RESULTS.glob("*.json"))


def test_the_page_is_what_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_results.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(write_results, "PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(sys, "argv", ["write_results.py"])
    write_results.main()
    assert write_results.PAGE.read_text(encoding="utf-8") == text, "say `python benchmarks/write_results.py`"


def test_what_was_measured_is_on_the_page_and_says_where_it_comes_from() -> None:
    words = {path.name.partition(".")[0] for path in write_results.RESULTS.glob("*.md.j2")}
    assert set(write_results.SECTIONS) == words
    named = "".join(path.read_text(encoding="utf-8") for path in write_results.RESULTS.glob("*.md.j2"))
    for name, found in ((path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in FILES):
        assert name in words or f'record("{name}")' in named, f"no words name {name}"
        assert found["name"] == name
        assert re.fullmatch(r"[0-9a-f]{7}", found["commit"]), f"{name}: measure what is committed"
        assert found["command"].startswith("python benchmarks/"), name
        assert found["found"], f"{name}: a script has found it, and not a hand"
        assert {"processor", "cores", "threads"} <= found["machine"].keys()
        text = write_results.section(name) if name in write_results.SECTIONS else None
        for title, one in found["tables"].items():
            shown = markdown(one["rows"], one["header"])
            assert text is None or shown in text, f"the words of {name} do not show its table {title!r}"


def test_ratios_between_frameworks_are_those_of_the_medians_in_the_table(tmp_path: Path) -> None:
    found = record.read("peers")
    for name, by_task in found["found"]["results"].items():
        for one in by_task.values():
            one["seconds"] = [100.0, *([1.0, 3.0] if name == "fedcmp" else [2.0, 9.0])]
    (tmp_path / "peers.json").write_text(json.dumps(found))
    (tmp_path / "peers.md.j2").write_text((write_results.RESULTS / "peers.md.j2").read_text())
    text = " ".join(write_results.section("peers", tmp_path).split())
    assert "pfl-research 2.75 times as long as fedcmp" in text, "5.5 to 2"
    assert "fedcmp takes 0.36 (met) of pfl-research's seconds with 8 clients and 0.36 (met) with 64" in text


def test_a_record_makes_a_section(tmp_path: Path) -> None:
    one = record.Table(("what", "seconds"), (("all", 1.5), ("half", None)))
    record.save("speed", "python benchmarks/speed.py", {"seconds": 1.5}, {"main": one}, {"peer": "1.0"}, tmp_path)
    words = '## Speed\n\n{{ about }}\n\n{{ table("main") }}\n\nIt took {{ found.seconds }} s.\n'
    (tmp_path / "speed.md.j2").write_text(words)
    text = write_results.section("speed", tmp_path)
    for part in ("| all | 1.500 |", "It took 1.5 s.\n", "`python benchmarks/speed.py`; commit "):
        assert part in text
    (tmp_path / "speed.md.j2").write_text("{{ found.minutes }}")
    with pytest.raises(jinja2.UndefinedError):
        write_results.section("speed", tmp_path)
