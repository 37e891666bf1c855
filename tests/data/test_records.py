"""LLaVA-style records: what is read, and what is said about what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from published import lines, record

from fedcmp.data.held_out import hold_out
from fedcmp.data.records import inside, load_json, read_json, read_records
from fedcmp.data.scenarios import PartitionConfig, partition_conversations
from fedcmp.errors import DataError

ONE, TWO = record("a", "x/a.png"), record(7, "x/a.png", domain="pets", label="cat", client="north")


def test_an_array_and_lines_say_the_same(tmp_path: Path) -> None:
    array = tmp_path / "r.json"
    array.write_text(f"\ufeff\n [{json.dumps(ONE)}\r\n ,\t{json.dumps(TWO)} ] \n", encoding="utf-8")  # as of Windows
    for path in (array, lines(tmp_path / "r.jsonl", ONE, "", TWO), lines(tmp_path / "l.json", ONE, "", TWO)):
        found = read_records(path).samples
        assert [(s.id, s.image, s.caption, s.domain, s.label, s.client) for s in found] == [
            ("a", "x/a.png", "a cat.", "default", None, None),
            ("7", "x/a.png", "a cat.", "pets", "cat", "north"),
        ]
        assert found[1].origin == f"{path}{': record 1' if path == array else ':3'}"


@pytest.mark.parametrize(("line", "named"), [
    ("{not json", "not valid JSON"),
    ('{"id": ' + "9" * 5000 + "}", "not valid JSON"),
    ("[1]", "got list"),
    (record("", "a.png"), "field `id`"),
    (record(True, "a.png"), "field `id`"),
    (record("b", 3), "field `image`"),
    (record("b", "../secret.png"), "field `image`"),
    (record("b", "x.png", conversations="hello"), "field `conversations`"),
    (record("b", "x.png", conversations=[{"from": "human", "value": "x"}]), "field `conversations`"),
    ({"id": "b", "image": "x.png"}, "conversations"),
    (record("b", "x.png", "  "), "field `conversations`"),
    (record("b", "x.png", "\ud83d"), "Unicode"),
    (record("a", "x.png"), "id 'a' .*r.jsonl:1"),
    (record("b", "x.png", domain=5), "field `domain`"),
    (record("b", "x.png", captions=["a", ""]), "field `captions`"),
    (record("b", "https://example.org/a.png"), "field `image`"),
    (record("b", ["x/a.png", "x/b.png"]), "field `image`"),
    (record("b", None), "field `image`"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_bad_records_are_named_or_counted(tmp_path: Path, line: object, named: str) -> None:
    path = lines(tmp_path / "r.jsonl", ONE, line, TWO)
    with pytest.raises(DataError, match=rf"r\.jsonl:2: .*{named}"):
        read_records(path)
    found = read_records(path, on_bad="skip")
    assert [sample.id for sample in found.samples] == ["a", "7"]
    image = line.get("image", "") if isinstance(line, dict) else ""
    kinds = {None: "records without a picture", "x/a.png": "records with several pictures"}
    assert found.left_out == {kinds.get(image[0] if isinstance(image, list) else image, "bad records"): 1}


ASKED = {"role": "user", "content": "<image>what?"}
PARTS = [{"type": "image_url", "image_url": {"url": "x/a.png"}}, {"type": "text", "text": "what?"}]
ANSWER = {"role": "assistant", "content": "a cat."}
FORMS = {
    "LLaVA-NeXT": record("a", ["x/a.png"]),
    "ShareGPT": {"conversations": ONE["conversations"], "images": ["x/a.png"]},
    "LLaMA-Factory": {"messages": [ASKED, ANSWER], "images": ["x/a.png"]},
    "ms-swift": {"messages": [ASKED, ANSWER], "images": [{"bytes": None, "path": "x/a.png"}]},
    "OpenAI": {"messages": [{"role": "user", "content": PARTS},
                            {"role": "assistant", "content": [{"type": "text", "text": "a cat."}]}]},
    "a chat template": {"messages": [{"role": "user", "content": [{"type": "image", "path": "x/a.png"}]}, ANSWER]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_records_say_the_same(tmp_path: Path, form: str) -> None:
    [sample] = read_records(lines(tmp_path / "r.jsonl", FORMS[form])).samples
    assert (sample.image, sample.caption, sample.captions, sample.group) == ("x/a.png", "a cat.", (), None)
    assert sample.id in ("a", "r.jsonl:1")


def test_answers_after_the_first_are_counted_or_samples_of_their_own(tmp_path: Path) -> None:
    turns = [turn for text in ("one", "two", " ", "three") for turn in record(1, "", text)["conversations"]]
    path = lines(tmp_path / "r.jsonl", record("a", "x.png", conversations=turns), record("b", "x.png"))
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


@pytest.mark.parametrize("content", [b"", b"17", b"id,caption\n", b"[1, 2", b'["caf\xe9"]', b"[" * 9999])
def test_files_that_are_no_records_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DataError, match=r"r\.json"):
        list(read_json(tmp_path / "r.json"))
    for read in (load_json, read_records):
        with pytest.raises(DataError, match=r"none\.json"):
            read(tmp_path / "none.json")


def test_paths_stay_inside() -> None:
    assert inside("./a//b.png", "") == "a/b.png"
    assert inside(".\\b\\2.png", "") == "b/2.png"
    for path in ("", " ", ".", "/", "/etc/passwd", "\\x", "..", "a/../b", "a\\..\\..\\b", "a\0b", "D:/x", None, 5):
        with pytest.raises(DataError, match="field `image`"):
            inside(path, "here")
