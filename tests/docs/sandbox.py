"""A folder in which the commands of the pages find what they name, and words that make them small."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data.layouts import published
from models.test_page import BIG_LLMS, BIG_TOWERS
from small import SMALL
from written import ROOT

from fedcmp.cli import commands, entry
from fedcmp.data.sources import SceneSource
from fedcmp.models.backbones import DEMO
from fedcmp.study import Request, ask

PLACEHOLDERS = {
    "CONFIG": "configs/demo/scenes.yaml",
    "RUN": "runs/mine",
    "RUN_OR_COMPARISON": "runs/compare-demo-1",
    "PATH": "runs/mine/projector.safetensors",
    "DIR": "exported",
    "FILE": "configs/demo/scenes.yaml",
    "LAYOUT": "llava",
    "SOURCE": "LLaVA-Pretrain",
    "ROOT/DOMAIN": "data/web",
    "RSICD": "RSICD",  # a name
}
"""What stands for a word that the reader replaces."""
LINKED = ("configs", "examples", "benchmarks", "launch", "tests", "docs", "pyproject.toml", "constraints.txt")
QUICK = [*SMALL, "federation.rounds=1", "federation.local_steps=0", "partition.quantity.min_samples=4"]
"""The demo in a second."""
TUNING = ["centralized.batch_sizes=[8]", "centralized.lrs=[1e-2]"]
QUICK_PAIRS = [
    "data.domains=[clothing,digits]",
    "data.max_train_per_domain=32",
    "data.max_val_per_domain=2",
    "data.max_test_per_domain=2",
    "federation.local_steps=1",
]
"""Beside QUICK, for the real pairs."""
COMPARED = ["--seeds", "1", "--budget", "1", "--no-bounds", "--workers", "1"]
LISTS = ("--methods", "--scenarios")
MODELS = {"siglip-so400m": BIG_TOWERS["SigLIP so400m/14-384"], "Qwen2.5-0.5B": (BIG_LLMS["Qwen2.5-0.5B"], None)}
"""Model folders of the pages: their shapes, without weights."""
SETS: dict[str, Callable[[Path], object]] = {
    "LLaVA-Pretrain": published.llava,
    "chat": published.chat,
    "LLaVA-Med": lambda home: published.llava_med(home / "data"),
    "ROCOv2-radiology": published.roco,
    "RSICD": published.rsicd,
    "NWPU-Captions": published.nwpu,
    "coco": published.coco,
    "cc3m": published.shards,
}
"""Public sets, as the pages call their folders: a few records in their layouts."""
SCALE = ["data.held_out_per_domain=8", "data.workers=1"]
"""For configs/scale/, on such sets."""
RUN = re.compile(r"runs/[\w*.-]+")


def make(folder: Path) -> None:
    """Links to the checkout, and pictures of one's own."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    (folder / "photos").mkdir()
    for path in (folder / "photo.jpg", folder / "photos" / "1.jpg"):
        path.write_bytes(published.picture(1, "JPEG"))


def own_data(folder: Path) -> None:
    """Pairs in LLaVA's layout and two models, as the first page calls them: the demo's, under other names."""
    source = SceneSource({"train": 8, "val": 2, "test": 2})
    with zipfile.ZipFile(folder / "images.zip", "w") as pictures:
        for split, name in (("train", "t.jsonl"), ("val", "v.jsonl")):
            lines = []
            for sample in source.samples(split):
                with pictures.open(sample.image, "w") as file:
                    source.image(sample).save(file, "png")
                turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": sample.caption}]
                lines.append(json.dumps({"id": sample.id, "image": sample.image, "conversations": turns}) + "\n")
            (folder / name).write_text("".join(lines))
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "clip").symlink_to(DEMO / "tower")
    (folder / "path" / "to" / "llama").symlink_to(DEMO / "llm")


def public_set(folder: Path, words: Sequence[str]) -> list[str]:
    """The set that ``fedcmp prepare`` is to read, and the words that fit its size."""
    source = words[2].partition("/")[0]
    if source in SETS:
        (folder / source).mkdir()
        SETS[source](folder / source)
    else:  # a table beside its pictures
        published.clinic(folder)
    return [re.sub(r"\{00000\.\.\d+\}", "{00000..00002}", word) for word in words]


def prepared(folder: Path, words: Sequence[str]) -> None:
    """The domains that a run names, as ``fedcmp prepare`` leaves them."""
    (listed,) = (word for word in words if word.startswith("data.domains="))
    for place, name in enumerate(re.findall(r"\w+", listed.partition("=")[2])):
        domain, start = folder / "data" / name, 1000 * place
        numbers = {"train": range(start, start + 144), "val": range(start + 200, start + 204)}
        numbers["test"] = range(start + 300, start + 304)
        for split, those in numbers.items():
            published.foldered(
                domain / "images", {f"{number}.png": published.picture(number, "PNG") for number in those}
            )
            records = [
                {"id": f"{name}-{number}", "image": f"{number}.png", "label": f"thing {number % 4}",
                 "conversations": published.turns(f"thing {number % 4}, number {number}")}
                for number in those
            ]  # fmt: skip
            (domain / f"{split}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def scale_data(folder: Path) -> tuple[str, str]:
    """The variable that configs/scale/ read, and the folder that it names."""
    home = folder / "LLaVA-Pretrain"
    home.mkdir()
    return "LLAVA_PRETRAIN", str(published.llava(home, 120))


def big_model(folder: Path, name: str) -> str:
    """A model folder that holds the shapes of a real model and no weights."""
    config, processor = MODELS[name]
    made = folder / "models" / name
    made.mkdir(parents=True, exist_ok=True)
    (made / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (made / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(made)


def filled(words: Iterable[str], folder: Path) -> list[str]:
    """The words with what the reader would put in place of CONFIG, RUN, ... and of models that are elsewhere."""
    found = []
    for word in words:
        key, equals, value = word.rpartition("=")
        if value.startswith("/models/"):
            value = big_model(folder, value.removeprefix("/models/"))
        unknown = value not in PLACEHOLDERS and re.fullmatch(r"[A-Z][A-Z_]+", value)
        assert not unknown, f"{word}: what does {value} stand for? Say it in PLACEHOLDERS of {__file__}"
        found.append(key + equals + PLACEHOLDERS.get(value, value))
    return found


def with_runs(words: Sequence[str], folder: Path, finished: Path) -> list[str]:
    """Makes the run folders that a command reads, and makes way for the one that it writes; ``*`` becomes two."""
    made = []
    for word in words:
        found = RUN.search(word)
        if found is None or word.startswith("run.dir="):
            if found:
                shutil.rmtree(folder / found[0], ignore_errors=True)
            made.append(word)
            continue
        for end in ("one", "two") if "*" in found[0] else ("",):
            name = found[0].replace("*", end)
            if not (folder / name).exists():
                shutil.copytree(finished, folder / name)
            made.append(word.replace(found[0], name))
    return made


def ask_all(words: Sequence[str]) -> None:
    """Checks every method, scenario and config of a comparison, of which ``compare_less`` runs some."""
    parsed = entry._parser().parse_args(["compare", *words])
    lists = {name: ",".join(getattr(parsed, name) or []) or None for name in ("methods", "scenarios")}
    numbers = {name: getattr(parsed, name) for name in ("seeds", "budget", "extra_seeds", "rivals", "reference")}
    file, overrides = commands.split_words(parsed.words)
    assert ask(file, overrides, Request(**lists, **numbers)).methods


def compare_less(words: Sequence[str]) -> list[str]:
    """The first and the last of the methods in the last of the scenarios, without tuning and bounds."""
    fewer = []
    for before, word in zip(["", *words], words, strict=False):
        if before in LISTS:
            parts = word.split(",")
            word = ",".join(dict.fromkeys([parts[0], parts[-1]])) if before == "--methods" else parts[-1]
        fewer.append(word)
    return [*fewer, *COMPARED]
