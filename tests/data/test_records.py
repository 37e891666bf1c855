"""LLaVA-style records: what is read, and what is said about what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcmp.data.records import read_records
from fedcmp.errors import DataError


def record(key: object = "a", **changes: object) -> dict:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat."}]
    return {"id": key, "image": "x/a.png", "conversations": turns, **changes}


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_json_and_jsonl_say_the_same(tmp_path: Path) -> None:
    records = [record("a", domain="pets", label="cat"), record(7)]
    lines = read_records(write(tmp_path / "r.jsonl", *records)).samples
    array = read_records(write(tmp_path / "r.json", json.dumps(records))).samples
    for samples in (lines, array):
        assert [(s.id, s.image, s.caption, s.domain, s.label) for s in samples] == [
            ("a", "x/a.png", "a cat.", "pets", "cat"),
            ("7", "x/a.png", "a cat.", "default", None),
        ]
    assert lines[1].origin.endswith("r.jsonl:2")


BAD = [
    ("{not json", r"r\.jsonl:2: not valid JSON"),
    ([1], r"r\.jsonl:2: expected a JSON object, got list"),
    (record(""), r":2: field `id`"),
    (record("b", image=3), r":2: field `image`.*\(id b\)"),
    (record("b", image="../secret.png"), r"must stay inside"),
    (record("b", conversations="hello"), r":2: field `conversations` must be a list"),
    (record("b", conversations=[{"from": "human", "value": "x"}]), r'no turn with "from": "gpt"'),
    (record("b", conversations=[{"from": "gpt", "value": "  "}]), r":2: the caption is empty \(id b\)"),
    (record("a"), r":2: id 'a' stands already at .*r\.jsonl:1"),
    (record("b", domain=5), r":2: field `domain`"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_records_are_named_or_skipped(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "r.jsonl", record("a"), line, record("z"))
    with pytest.raises(DataError, match=message):
        read_records(path)
    records = read_records(path, on_bad="skip")
    assert [sample.id for sample in records.samples] == ["a", "z"]
    assert records.num_skipped == 1


def test_files_that_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"r\.json:\d: not valid JSON"):
        read_records(write(tmp_path / "r.json", "{"))
    for text in ("", "17"):
        with pytest.raises(DataError, match=r"r\.json: expected a JSON array of records, or one record a line"):
            read_records(write(tmp_path / "r.json", text))
    with pytest.raises(DataError, match=r"r\.json:1: field `id`"):
        read_records(write(tmp_path / "r.json", "{}"))


def test_an_array_may_be_spaced_in_any_way(tmp_path: Path) -> None:
    for text in ("[]", " [\n]\t", f"\n [ {json.dumps(record('a'))}\r\n ,\t{json.dumps(record('b'))} ] \n"):
        found = read_records(write(tmp_path / "r.json", text)).samples
        assert [sample.id for sample in found] == [one["id"] for one in json.loads(text)]
    assert [sample.origin.rpartition(": ")[2] for sample in found] == ["record 0", "record 1"]
