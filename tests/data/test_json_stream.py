"""JSON of any size, value by value."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from fedcmp.data import json_stream
from fedcmp.data.json_stream import elements, records
from fedcmp.errors import DataError


def anything(rng: random.Random, depth: int = 3) -> object:
    kind = rng.choice(["number", "text", "word", "list", "object"] if depth else ["number", "text", "word"])
    if kind == "number":
        return rng.choice([rng.randint(-(10**9), 10**9), rng.random() * 1e-7, 0, -1.5e300])
    if kind == "text":
        return "".join(rng.choice('ab"\\\n\t{}[],: é漢😀') for _ in range(rng.randint(0, 30)))
    if kind == "word":
        return rng.choice([True, False, None])
    parts = [anything(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return parts if kind == "list" else {f"k{number}": part for number, part in enumerate(parts)}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
def test_it_reads_what_json_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    rng = random.Random(3)
    path = tmp_path / "a.json"
    for _ in range(12):
        values = [anything(rng) for _ in range(rng.randint(0, 6))]
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=rng.random() < 0.5), encoding="utf-8")
        assert [found.value for found in elements(path)] == values
        whole = {"info": {"a": anything(rng)}, "images": values, "year": 2017, "empty": [], "annotations": values[::-1]}
        path.write_text(json.dumps(whole, indent=indent), encoding="utf-8")
        found = [(one.key, one.number, one.value) for one in elements(path)]
        assert found == [
            (key, number, value) for key in ("images", "annotations") for number, value in enumerate(whole[key])
        ]


def test_memory_is_that_of_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 1 << 12)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": number, "text": "x" * 200} for number in range(20_000)]))
    assert path.stat().st_size > 4_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in elements(path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_records_come_from_an_array_or_from_lines_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text('\n{"id": 1}\n\nno json\n{"id": 2}\n')
    found = list(records(path))
    assert [origin.rsplit("/", 1)[1] for origin, _ in found] == ["records.json:2", "records.json:4", "records.json:5"]
    assert found[0][1] == {"id": 1}
    assert isinstance(found[1][1], DataError)
    assert "records.json:4: not valid JSON" in str(found[1][1])
    path.write_text("\ufeff" + '[{"id": 1}, 5]', encoding="utf-8")  # Windows begins its files so
    assert list(records(path)) == [(f"{path}: record 0", {"id": 1}), (f"{path}: record 1", 5)]


def test_one_object_is_told_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"records": [{"id": 1}, {"id": 2}]}, indent=1))
    with pytest.raises(DataError, match=r"a\.json:1: an object of several lines; expected a JSON array"):
        list(records(path))
    path.write_text('{"id": \n{"id": 2}\n')
    assert isinstance(next(iter(records(path)))[1], DataError), "a corrupted line is one bad record"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[{"id": 1},\n{"id": }]', r"a\.json:2: not valid JSON"),
        ('[{"id": 1}\n{"id": 2}]', r"a\.json:2: not valid JSON: expected ','"),
        ('[{"id": 1},\n {"id"', r"a\.json:2: not valid JSON"),
        ('[{"id": 1}', r"it ends where ',' is due"),
        ("[1] 2", r"expected nothing after the end"),
        ('{"a": [1], b: 2}', r"expected the name of a member"),
        ("7", r"expected a JSON array or object"),
        ("", r"expected a JSON array or object"),
        ('["caf\udce9"]', r"not UTF-8"),
    ],
)
def test_corrupt_is_named_by_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=complaint):
        list(elements(path))


def test_a_missing_file_and_an_endless_record_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.json"):
        list(elements(tmp_path / "none.json"))
    (tmp_path / "b.json").write_text("id,caption\n")
    with pytest.raises(DataError, match=r"expected a JSON array of records, or one record a line"):
        list(records(tmp_path / "b.json"))
    monkeypatch.setattr(json_stream, "LARGEST", 1000)
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    (tmp_path / "c.json").write_text('["' + "x" * 5000)
    with pytest.raises(DataError, match=r"longer than 1,000 characters, or corrupted"):
        list(elements(tmp_path / "c.json"))
