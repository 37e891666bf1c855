"""An LLM that was trained to be steered is steered, and fedcmp takes it."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fedcmp.models.backbones import load_llm
from fedcmp.models.settings import ModelConfig

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import caption_reader

THINGS = re.findall(
    r"\w+", "dog cat car house tree boat bird cup hat shoe lamp door fish horse chair sofa plate fork knife spoon train"
)
CAPTIONS = [f"{one} and {other}" for one, other in itertools.permutations(THINGS, 2)]
SMALL = {"batch": 32, "width": 80, "layers": 1, "seed": 3, "words": 300}


def test_own_words_help_and_the_folder_is_an_llm(tmp_path, monkeypatch, capsys) -> None:
    records = [{"conversations": [{"value": "<image>"}, {"value": text}]} for text in CAPTIONS[:140]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "b.txt").write_text("\n\n".join(text.upper() for text in CAPTIONS[140:280]))
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("\n".join(CAPTIONS[280:]))
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.txt.gz")]
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", ["x", *files, "--out", str(tmp_path / "llm"), "--steps=150", *options])
    caption_reader.main()
    said = capsys.readouterr().out
    own, another, zeros = map(float, re.findall(r"(?:own|another|zeros) (\d\.\d+)", said))
    assert own < zeros - 0.1
    assert own < another - 0.25, "words of another caption mislead"
    llm = load_llm(ModelConfig(llm=str(tmp_path / "llm"), end="eos"))
    assert (llm.width, llm.num_embeddings, llm.bos_id, llm.end_id, llm.pad_id) == (80, 300, 1, 2, 0)
    assert llm.tokenizer.decode(llm.tokenizer("dog and cat")["input_ids"]) == "dog and cat", "nothing is added"


def test_equal_seeds_give_equal_models_and_others_do_not() -> None:
    first, again, other = (
        caption_reader.make(CAPTIONS[:200], **{**SMALL, "seed": seed}, steps=2) for seed in (3, 3, 4)
    )
    assert first.losses == again.losses != other.losses
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    with pytest.raises(ValueError, match="39 distinct captions"):
        caption_reader.make(CAPTIONS[:39] * 9, **SMALL, steps=1)
