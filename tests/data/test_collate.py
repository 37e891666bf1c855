"""Captions to labelled tokens."""

from __future__ import annotations

import pytest
import torch

from fedcmp.data.collate import Batches, collate, encode_captions
from fedcmp.data.records import Sample
from fedcmp.errors import DataError
from fedcmp.models.backbones import LanguageModel
from fedcmp.types import IGNORE


def sample(caption: str) -> Sample:
    return Sample("a", "a.png", caption, "d", origin="r.jsonl:3")


def test_a_caption_ends_with_its_end_and_carries_loss_everywhere(llm: LanguageModel) -> None:
    tokens = encode_captions(llm.tokenizer, [sample("a red two"), sample("a two")], llm.end_id)
    assert llm.tokenizer.decode(tokens[0]) == "a red two\n"
    batch = collate(tokens, llm.pad_id, features=torch.zeros(2, 1, 1))
    assert (batch["labels"] != IGNORE).sum(1).tolist() == [len(tokens[0]), len(tokens[1])]
    shown = batch["labels"] != IGNORE
    assert torch.equal(batch["labels"][shown], batch["input_ids"][shown])


def test_long_captions_are_cut_and_keep_their_end(llm: LanguageModel) -> None:
    (tokens,) = encode_captions(llm.tokenizer, [sample("a red two " * 50)], llm.end_id, max_tokens=7)
    assert len(tokens) == 7
    assert tokens[-1] == llm.end_id


def test_lowercase(llm: LanguageModel) -> None:
    upper, lower = (
        encode_captions(llm.tokenizer, [sample(text)], llm.end_id, lowercase=True)[0] for text in ("A Two", "a two")
    )
    assert torch.equal(upper, lower)


def test_line_breaks_inside_a_caption_are_no_end(llm: LanguageModel) -> None:
    text = "findings: a red two.\r\n\r\nimpression:\t a  plain two."
    broken, plain = encode_captions(llm.tokenizer, [sample(text), sample(" ".join(text.split()))], llm.end_id)
    assert torch.equal(broken, plain)
    assert (broken == llm.end_id).nonzero().flatten().tolist() == [len(broken) - 1]


def test_line_breaks_stay_where_something_else_is_the_end(llm: LanguageModel) -> None:
    (tokens,) = encode_captions(llm.tokenizer, [sample("a red\ntwo")], llm.tokenizer.eos_token_id)
    assert llm.tokenizer.decode(tokens[:-1]) == "a red\ntwo"


def test_a_caption_without_tokens_is_named(llm: LanguageModel) -> None:
    class Deaf:
        def __call__(self, texts, **_):
            return {"input_ids": [[] for _ in texts]}

        def decode(self, _tokens):
            return "</s>"

    with pytest.raises(DataError, match=r"r\.jsonl:3: the tokenizer finds no token"):
        encode_captions(Deaf(), [sample("ツ")], llm.end_id)


def test_batches_fetch_by_position() -> None:
    features = torch.arange(6.0).view(3, 2, 1)
    batches = Batches(features, [torch.tensor([1]), torch.tensor([2, 3]), torch.tensor([4])], 0, torch.device("cpu"))
    batch = batches([2, 1])
    assert batch["input_ids"].tolist() == [[4, 0], [2, 3]]
    assert batch["features"].flatten().tolist() == [4.0, 5.0, 2.0, 3.0]
