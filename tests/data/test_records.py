"""LLaVA-style records: what is read, and what is said about what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedcmp.data.held_out import hold_out
from fedcmp.data.records import read_records
from fedcmp.data.scenarios import PartitionConfig, partition_conversations
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
    (record("b", conversations=[{"from": "gpt", "value": "  "}]), r":2: the caption is empty.* \(id b\)"),
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
    assert records.left_out == {"bad records": 1}


PARTS = [{"type": "image_url", "image_url": {"url": "x/a.png"}}, {"type": "text", "text": "what?"}]
ANSWER = {"role": "assistant", "content": "a cat."}
FORMS = {
    "LLaVA-NeXT": record("a", image=["x/a.png"]),
    "ShareGPT": {"conversations": record()["conversations"], "images": ["x/a.png"]},
    "LLaMA-Factory": {"messages": [{"role": "user", "content": "<image>what?"}, ANSWER], "images": ["x/a.png"]},
    "ms-swift": {"messages": [{"role": "system", "content": "you see"}, {"role": "user", "content": "<image>"}, ANSWER],
                 "images": [{"bytes": None, "path": "x/a.png"}]},
    "OpenAI": {"messages": [{"role": "user", "content": PARTS},
                            {"role": "assistant", "content": [{"type": "text", "text": "a cat."}]}]},
    "a chat template": {"messages": [{"role": "user", "content": [{"type": "image", "path": "x/a.png"}]}, ANSWER]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_records_say_the_same(tmp_path: Path, form: str) -> None:
    for path in (write(tmp_path / "r.jsonl", FORMS[form]), write(tmp_path / "r.json", json.dumps([FORMS[form]]))):
        [sample] = read_records(path).samples
        assert (sample.image, sample.caption, sample.captions, sample.group) == ("x/a.png", "a cat.", (), None)
        assert sample.id in ("a", "r.jsonl:1", "r.json:0")


@pytest.mark.parametrize(("changes", "kind"), [
    ({"image": ["x/a.png", "x/b.png"]}, "records with several pictures"),
    ({"image": None, "images": ["x/a.png", "x/b.png"]}, "records with several pictures"),
    ({"image": None}, "records without a picture"),
    ({"image": []}, "records without a picture"),
    ({"image": "https://example.org/a.png"}, "bad records"),
    ({"image": "data:image/png;base64,AAAA"}, "bad records"),
])  # fmt: skip
def test_records_without_one_picture_are_refused_or_counted(tmp_path: Path, changes: dict, kind: str) -> None:
    path = write(tmp_path / "r.jsonl", record("a"), record("b", **changes), record("c", **changes))
    with pytest.raises(DataError, match=r"r\.jsonl:2: field `image`"):
        read_records(path)
    found = read_records(path, on_bad="skip")
    assert ([sample.id for sample in found.samples], found.left_out) == (["a"], {kind: 2})


def test_answers_after_the_first_are_counted_or_samples_of_their_own(tmp_path: Path) -> None:
    turns = [turn for text in ("one", "two", " ", "three") for turn in record(conversations=[
        {"from": "human", "value": "?"}, {"from": "gpt", "value": text}])["conversations"]]  # fmt: skip
    path = write(tmp_path / "r.jsonl", record("a", conversations=turns), record("b"))
    first, whole = read_records(path), read_records(path, turns="all")
    assert [(one.id, one.caption) for one in first.samples] == [("a", "one"), ("b", "a cat.")]
    assert first.left_out == {"answers after the first": 2}
    assert [(one.id, one.caption, one.group) for one in whole.samples] == [
        ("a", "one", "a"), ("a#2", "two", "a"), ("a#3", "three", "a"), ("b", "a cat.", None)
    ]  # fmt: skip
    assert not whole.left_out
    train, held_out = hold_out([replace(one, id=f"{one.id}{n}", group=one.group and f"{one.group}{n}")
                                for n in range(40) for one in whole.samples], 60)  # fmt: skip
    assert 60 <= len(held_out) <= 62
    assert not {one.group for one in train if one.group} & {one.group for one in held_out}
    for scenario in ("domain", "topic", "domain+quantity"):
        config = PartitionConfig(scenario=scenario, clients=3)
        config.quantity.min_samples = 1
        split = partition_conversations(train, config, 5)
        owners = [{train[position].group for position in client} - {None} for client in split.clients]
        assert sum(map(len, owners)) == len(set.union(*owners))
        assert len(split.topics) in (0, len(train))
        if scenario != "domain+quantity":
            assert sorted(position for client in split.clients for position in client) == list(range(len(train)))


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
