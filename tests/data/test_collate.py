"""Captions to labelled tokens."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from fedcmp.data.collate import Batches, CaptionEncoder, collate
from fedcmp.data.records import Sample
from fedcmp.errors import DataError
from fedcmp.models.backbones import LanguageModel
from fedcmp.types import IGNORE


def sample(caption: str) -> Sample:
    return Sample("a", "a.png", caption, "d", origin="r.jsonl:3")


def encode(llm: LanguageModel, *captions: str, **options: Any) -> list[Tensor]:
    return CaptionEncoder.of(llm, **options)([sample(caption) for caption in captions])


def test_a_caption_ends_with_its_end_and_carries_loss_everywhere(llm: LanguageModel) -> None:
    tokens = encode(llm, "a red two", "a two")
    assert llm.tokenizer.decode(tokens[0]) == "a red two\n"
    batch = collate(tokens, llm.pad_id, features=torch.zeros(2, 1, 1))
    shown = batch["labels"] != IGNORE
    assert shown.sum(1).tolist() == [len(tokens[0]), len(tokens[1])]
    assert torch.equal(batch["labels"][shown], batch["input_ids"][shown])
    assert torch.equal(*encode(llm, "A Two", "a two", lowercase=True))


def test_captions_are_cut_and_on_one_line(llm: LanguageModel) -> None:
    (whole,) = encode(llm, "a red two")
    for most, cut in ((len(whole), 0), (len(whole) - 1, 1)):
        (tokens,) = encode(llm, "a red two", max_tokens=most)
        assert torch.equal(tokens, whole[:most])
        assert CaptionEncoder.of(llm, most).count_cut([sample("a red two"), sample("a")]) == cut
    text = "findings: a red two.\r\n\r\nimpression:\t a  plain two."
    broken, plain = encode(llm, text, " ".join(text.split()))
    assert torch.equal(broken, plain)
    assert (broken == llm.end_id).nonzero().flatten().tolist() == [len(broken) - 1]
    other = replace(CaptionEncoder.of(llm), end_id=llm.tokenizer.eos_token_id)
    assert llm.tokenizer.decode(other([sample("a red\ntwo")])[0][:-1]) == "a red\ntwo", "where the end is another"


CONTROL = ["<s>", "</s>", "<pad>", "<image>"]
LETTERS = sorted({*"abcdeghimnopstwx <>/▁"})


def _tokenizer(family: str) -> Any:
    """A tokenizer of each kind of model, with control tokens and one that only LLaVA's have."""
    if family == "byte-level BPE":  # GPT-2, Qwen2, OPT
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE({token: place for place, token in enumerate([*CONTROL, *alphabet])}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    elif family == "BPE with bytes":  # Llama, Gemma
        words = [*CONTROL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
        vocabulary = {token: place for place, token in enumerate(words)}
        made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    else:  # T5, XLM-R: the model itself knows the control tokens as pieces
        pieces = [*((token, 0.0) for token in [*CONTROL, "<unk>"]), *((letter, -2.0) for letter in LETTERS)]
        made = Tokenizer(models.Unigram(pieces, unk_id=len(CONTROL)))
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=["<image>"], **special)


@pytest.mark.parametrize("family", ["byte-level BPE", "BPE with bytes", "Unigram"])
def test_control_tokens_in_a_caption_are_text_or_refused(family: str) -> None:
    tokenizer = _tokenizer(family)
    encoder = CaptionEncoder(tokenizer, tokenizer.eos_token_id, len(tokenizer))
    assert len(encoder([sample("a cat")])[0]) == 6
    for token in CONTROL:
        text = f"a {token} two"
        assert tokenizer.convert_tokens_to_ids(token) in tokenizer(text, add_special_tokens=False)["input_ids"]
        if family == "Unigram":
            with pytest.raises(DataError, match=rf"r\.jsonl:3.*{token}"):
                encoder([sample(text)])
            continue
        (tokens,) = encoder([sample(text)])
        assert not set(tokens[:-1].tolist()) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(tokens[:-1]).replace(" ", "") == text.replace(" ", "")


def test_tokens_beyond_the_embeddings_are_refused_and_padding_is_moved(llm: LanguageModel) -> None:
    with pytest.raises(DataError, match=r"r\.jsonl:3: model\.llm"):
        CaptionEncoder(llm.tokenizer, llm.end_id, 60)([sample("a red two")])
    tokenizer = copy.deepcopy(llm.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    padded = LanguageModel(llm.model, tokenizer, llm.end_id)
    assert tokenizer.pad_token_id == llm.num_embeddings > padded.pad_id
    assert torch.equal(encode(padded, "a red two")[0], encode(llm, "a red two")[0])


def test_batches_fetch_by_position() -> None:
    features = torch.arange(6.0).view(3, 2, 1)
    batches = Batches(features, [torch.tensor([1]), torch.tensor([2, 3]), torch.tensor([4])], 0, torch.device("cpu"))
    batch = batches([2, 1])
    assert batch["input_ids"].tolist() == [[4, 0], [2, 3]]
    assert batch["features"].flatten().tolist() == [4.0, 5.0, 2.0, 3.0]
