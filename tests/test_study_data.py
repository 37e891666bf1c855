"""The study's pairs can be made again from their sources, and an LLM that captions them is steered by features."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import struct
import sys
from pathlib import Path

import caption_reader
import numpy as np
import pytest
import study_data
import study_domains

from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import build_source
from fedcmp.models.backbones import load_llm
from fedcmp.models.settings import ModelConfig


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """`digits` from a file of 60 pictures, of which the last equals the first."""
    raw = tmp_path / "equinox/docs/examples/MNIST/MNIST/raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    images[59] = images[0]
    (raw / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 60, 28, 28) + images.tobytes())
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 60) + bytes(n % 10 for n in range(60)))
    study_data.make("digits", [tmp_path / "equinox"], tmp_path / "pairs/digits")
    return tmp_path / "pairs/digits"


def test_a_domain_is_made_once_a_picture_and_a_run_can_read_it(made: Path) -> None:
    source = build_source(DataConfig(kind="pairs", root=str(made.parent)))
    samples = [sample for split in ("train", "val", "test") for sample in source.samples(split)]
    assert {sample.id for sample in samples} == {f"digits-{number:05}" for number in range(59)}
    assert source.image(samples[0]).size == (28, 28)
    assert 45 < len(source.samples("train")) < 58
    seven = next(sample for sample in samples if sample.id == "digits-00007")
    assert "seven" in seven.caption


@pytest.mark.shared
def test_our_copy_is_that_of_the_digests(shared: Path) -> None:
    assert study_data.check(shared)


@pytest.mark.shared
@pytest.mark.parametrize("domain", study_data.DOMAINS)
def test_rules_give_every_record_of_our_copy(domain: str, shared: Path) -> None:
    """Its split, id and form, and where captions are templates these too."""
    for side in ("train", "val"):
        for line in (shared / "pairs" / domain / f"{side}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            name, said, label = record["image"].partition("/")[2], record["captions"][0], record.get("label")
            stem = name.rpartition(".")[0]
            if record["caption_kind"] == "class-template":
                assert said == study_domains.caption_of(domain, stem, label)
            elif record["caption_kind"] == "unicode-name":
                assert label == study_domains.emoji_label(stem.split("_"))
                assert said == study_domains.pick(stem, study_domains.TEMPLATES["emoji"]).format(label)
            elif record["caption_kind"] == "country-name":
                assert said.startswith(study_domains.pick(stem[5:], study_domains.TEMPLATES["flags"]).split("{")[0])
            item = study_domains.Item(name, said, b"", label, record["caption_kind"], record.get("group"))
            assert json.dumps(study_data.record_of(domain, item), ensure_ascii=False) == line
            assert study_data.side_of(record) == side


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
