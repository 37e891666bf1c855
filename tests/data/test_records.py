"""LLaVA-style records: what is read, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from published import lines, record

from fedcmp.data.held_out import hold_out
from fedcmp.data.records import Sample, parse_pairs, read_json
from fedcmp.data.scenarios import PartitionConfig, partition_conversations
from fedcmp.errors import DataError

ONE, TWO = record("a", "x/a.png"), record(7, "x/a.png", domain="pets", label="cat", client="north")


def read(path: Path) -> list[Sample]:
    return [sample for origin, one in read_json(path) for sample in parse_pairs(one, origin)]


def test_an_array_and_lines_say_the_same(tmp_path: Path) -> None:
    array = tmp_path / "r.json"
    array.write_text(f"\ufeff\n [{json.dumps(ONE)}\r\n ,\t{json.dumps(TWO)} ] \n", encoding="utf-8")  # as of Windows
    for path in (array, lines(tmp_path / "l.json", ONE, "", TWO)):
        found = read(path)
        assert [(s.id, s.image, s.caption, s.domain, s.label, s.client) for s in found] == [
            ("a", "x/a.png", "a cat.", "default", None, None),
            ("7", "x/a.png", "a cat.", "pets", "cat", "north"),
        ]
        assert found[1].origin == f"{path}{': record 1' if path == array else ':3'}"
    with pytest.raises(DataError, match=r"none\.json"):
        read(tmp_path / "none.json")


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
def test_forms_of_records_say_the_same(form: str) -> None:
    for more, captions in (({}, ()), ({"captions": [" a cat. ", "one cat"]}, ("a cat.", "one cat"))):
        [sample] = parse_pairs({**FORMS[form], **more}, "folder/r.jsonl:1")
        found = (sample.image, sample.caption, sample.captions, sample.group)
        assert found == ("x/a.png", "a cat.", captions, None)
        assert sample.id in ("a", "r.jsonl:1")


@pytest.mark.parametrize(("one", "named"), [
    (DataError("r.jsonl:2: not valid JSON"), "not valid JSON"),
    (record("", "a.png"), "`id`"),
    (record("b", "../secret.png"), "`image`"),
    (record("b", "https://example.org/a.png"), "`image`"),
    (record("b", "data:image/png;base64,AAAA"), "`image`"),
    (record("b", ["x/a.png", "x/b.png"]), "`image`"),
    (record("b", None), "`image`"),
    (record("b", "x.png", conversations=[{"from": "human", "value": "x"}]), "`conversations`"),
    (record("b", "x.png", "  "), "`conversations`"),
    (record("b", "x.png", "\ud83d"), "Unicode"),
    (record("b", "x.png", domain=5), "`domain`"),
    *((record("b", "x.png", captions=wrong), "`captions`") for wrong in ("a", ["a", ""], ["a", 7])),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_bad_records_are_named(one: object, named: str) -> None:
    with pytest.raises(DataError, match=rf"r\.jsonl:2: .*{named}") as caught:
        parse_pairs(one, "r.jsonl:2")
    image = one.get("image", "") if isinstance(one, dict) else ""
    kind = "records without a picture" if image is None else "records with several pictures"
    assert caught.value.kind == (kind if isinstance(image, list | None) else "bad records")


def test_answers_of_a_conversation_are_held_out_and_assigned_together(tmp_path: Path) -> None:
    turns = [turn for text in ("one", "two", " ", "three") for turn in record(1, "", text)["conversations"]]
    whole = read(lines(tmp_path / "r.jsonl", record("a", "x.png", conversations=turns), record("b", "x.png")))
    assert [(one.id, one.caption, one.group) for one in whole] == [
        ("a", "one", "a"), ("a#2", "two", "a"), ("a#3", "three", "a"), ("b", "a cat.", None)
    ]  # fmt: skip
    many = [replace(one, id=f"{one.id}{n}", group=one.group and f"a{n}") for n in range(40) for one in whole]
    train, held_out = hold_out(many, 60)
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
