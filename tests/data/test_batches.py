"""What batches are made of: captions as labelled tokens, and features, computed once and checked always."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from fedcmp.data.collate import Batches, CaptionEncoder, collate
from fedcmp.data.features import compute_features
from fedcmp.data.records import Sample
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import build_source
from fedcmp.errors import ConfigError, DataError
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
        assert torch.equal(*encode(llm, "a red two", max_tokens=most), whole[:most])
        assert CaptionEncoder.of(llm, most).count_cut([sample("a red two"), sample("a")]) == cut
    text = "findings: a red two.\r\n\r\nimpression:\t a  plain two."
    assert torch.equal(*encode(llm, text, " ".join(text.split()))), "a line break would be its end"
    other = replace(CaptionEncoder.of(llm), end_id=llm.tokenizer.eos_token_id)
    assert llm.tokenizer.decode(other([sample("a red\ntwo")])[0][:-1]) == "a red\ntwo", "where the end is another"


@pytest.mark.parametrize("family", ["byte-level BPE", "Unigram"])
def test_control_tokens_in_a_caption_are_text_or_refused(family: str) -> None:
    """A model of the kind of T5's itself knows the control tokens as pieces."""
    control = ["<s>", "</s>", "<pad>", "<image>"]
    if family == "Unigram":
        pieces = [(token, 0.0) for token in [*control, "<unk>"]] + [
            (letter, -2.0) for letter in "abcdeghimnopstwx <>/▁"
        ]
        made = Tokenizer(models.Unigram(pieces, unk_id=len(control)))
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE({token: place for place, token in enumerate([*control, *alphabet])}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    special["additional_special_tokens"] = ["<image>"]  # one that only LLaVA's have
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    encoder = CaptionEncoder(tokenizer, tokenizer.eos_token_id, len(tokenizer))
    assert len(encoder([sample("a cat")])[0]) == 6
    for token in control:
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


SOURCE = build_source(DataConfig(scenes_per_camera=6, val_scenes_per_camera=2, domains=["plain"]))
SAMPLES = SOURCE.samples("train")


class Counting:
    """A tower that counts the pictures that it sees; ``value`` is a feature of the second one."""

    def __init__(self, value: float | None = None) -> None:
        self.seen, self.value = 0, value

    def __call__(self, pictures) -> Tensor:
        self.seen += len(pictures)
        numbers = [list(picture.resize((2, 2)).tobytes()[:8]) for picture in pictures]
        features = torch.tensor(numbers, dtype=torch.float32).view(-1, 2, 4)
        if self.value is not None:
            features[1, 0, 2] = self.value
        return features


def table(cache: Path | None, samples=SAMPLES, key: str = "k", tower=None) -> tuple[Tensor, int]:
    """The features, and how many pictures the tower saw."""
    tower = tower or Counting()
    found = compute_features(SOURCE, samples, tower, cache=cache, key=key, batch_size=4)
    return found[list(range(len(samples)))], tower.seen


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    fresh, seen = table(tmp_path)
    assert (seen, fresh.dtype) == (6, torch.float32)
    assert torch.equal(fresh, Counting()([SOURCE.image(sample) for sample in SAMPLES]))
    for cache, samples, key, expected in (
        (tmp_path, SAMPLES, "k", 0),
        (None, SAMPLES, "k", 6),
        (tmp_path, [SAMPLES[4], SAMPLES[1]], "k", 0),
        (tmp_path, SAMPLES, "another tower", 6),
    ):
        again, seen = table(cache, samples, key)
        assert torch.equal(again, fresh[[SAMPLES.index(sample) for sample in samples]])
        assert seen == expected
    assert table(tmp_path, [*SAMPLES, *SOURCE.samples("val")])[1] == 2


def test_runs_that_share_a_cache_keep_each_others_work(tmp_path: Path) -> None:
    """One begins before the other has written anything, and ends after it."""

    class Slow(Counting):
        def __call__(self, pictures) -> Tensor:
            if not self.seen:
                table(tmp_path, SAMPLES[3:])
            return super().__call__(pictures)

    table(tmp_path, SAMPLES[:3], tower=Slow())
    assert table(tmp_path)[1] == 0


def test_what_is_corrupted_is_computed_again_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, _ = table(tmp_path)
    shard = next((tmp_path / "k").glob("shard-*.safetensors"))
    note = shard.with_suffix(".json")
    other = {**json.loads(note.read_text()), "key": "another"}
    harms = (
        lambda: shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 255])),
        lambda: note.write_text("{"),
        lambda: note.write_text(json.dumps(other)),
        shard.unlink,
    )
    for harm in harms:
        harm()
        caplog.clear()
        for computed in (6, 0):
            again, seen = table(tmp_path)
            assert torch.equal(again, expected)
            assert seen == computed
        assert shard.stem in caplog.text


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        table(tmp_path / "file")
    for value in (7e4, float("nan")):
        with pytest.raises(ConfigError, match=r"model\.tower: .*train-plain-1\.png"):
            table(tmp_path, tower=Counting(value))
    assert not list(tmp_path.glob("**/shard-*"))
