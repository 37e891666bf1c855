"""The configs for real data and models: planned with true shapes, trained with tiny models of the same families."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import published_models
import pytest
import transformers as hf
from data import published
from data.published import record
from models.tiny import save_llm, save_tower
from PIL import Image

from fedcmp.config import load_config
from fedcmp.report.plan import describe_plan
from fedcmp.runs.export import export_run
from fedcmp.runs.plan import plan
from fedcmp.runs.train import train

CONFIGS = Path(__file__).parent.parent / "configs" / "scale"
COLOURS = ("red", "blue")


def rows(folder: str, numbers: range) -> list[dict[str, Any]]:
    return [record(f"{folder}{n:04d}", f"{folder}/{n}.png", f"the {COLOURS[n % 2]} picture") for n in numbers]


def zipped(path: Path, folder: str, num: int) -> None:
    """Pictures of two colours, no two the same."""
    files = {}
    for number in range(num):
        buffer = io.BytesIO()
        pixels = np.asarray(Image.new("RGB", (24, 24), COLOURS[number % 2])) // 2 + np.uint8(number)
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        files[f"{folder}/{number}.png"] = buffer.getvalue()
    published.zipped(path, files)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-Pretrain as published, but short, and a federation of prepared domains."""
    root = tmp_path_factory.mktemp("scale")
    published.dump(root / "LLaVA-Pretrain" / "blip_laion_cc_sbu_558k.json", rows("00453", range(96)))
    zipped(root / "LLaVA-Pretrain" / "images.zip", "00453", 96)
    for domain in ("medical", "satellite", "web"):
        folder = root / "federation" / domain
        zipped(folder / "images.zip", domain, 72)
        for split, numbers in (("train", range(64)), ("val", range(64, 68)), ("test", range(68, 72))):
            published.lines(folder / f"{split}.jsonl", *rows(domain, numbers))
    return root


@pytest.fixture(autouse=True)
def _places(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PRETRAIN", str(data / "LLaVA-Pretrain"))
    monkeypatch.setenv("FEDCMP_SCALE_DATA", str(data / "federation"))


SHORT = ["federation.rounds=5", "federation.evaluate_every=5"]
TINY = [
    "wandb.mode=disabled", "run.figures=false", "evaluation.captions=0", "evaluation.examples=0",
    "evaluation.questions=0", "data.workers=1", "partition.clients=4", "federation.batch_size=4",
    "federation.rounds=4", "federation.evaluate_every=4", "launch.devices=1", "optimizer.lr=3e-2",
    "partition.quantity.min_samples=8", "run.device=cpu", "federation.clients_per_round=0",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_it_trains_on_repeated_data(name: str, tmp_path: Path) -> None:
    families = ("clip", "llama") if name.startswith("llava15") else ("siglip", "qwen2")
    tower, llm = save_tower(families[0], tmp_path / "tower"), save_llm(families[1], tmp_path / "llm")
    words = [*TINY, f"model.tower={tower}", f"model.llm={llm}", f"run.dir={tmp_path / 'run'}", "federation.passes=3"]
    if name in ("llava15_7b", "llava15_13b", "small_24gb"):
        words.append("data.held_out_per_domain=16")
    config = load_config(CONFIGS / f"{name}.yaml", words)
    assert config.data.stream
    assert config.model.tower_dtype == config.model.llm_dtype == "bfloat16"
    summary = train(config)
    start, end = summary["val/loss"]["start"], summary["val/loss"]["end"]
    assert end < 0.8 * start, summary["val/loss"]


@pytest.mark.parametrize(
    ("size", "update", "llm", "hours"), [("7b", 20_979_712, "13.5 GB", 3.5), ("13b", 31_467_520, "26.0 GB", 5.5)]
)
def test_the_plan_of_a_node_of_eight_gpus(size: str, update: int, llm: str, hours: float, tmp_path: Path) -> None:
    tower = published_models.clip(tmp_path / "tower")
    shape = published_models.vicuna(tmp_path / "llm", **(published_models.VICUNA_13B if size == "13b" else {}))
    words = [f"model.tower={tower}", f"model.llm={shape}", "data.held_out_per_domain=16", "run.device=cpu"]
    found = plan(load_config(CONFIGS / f"llava15_{size}.yaml", [*words, "federation.batch_size=2", *SHORT]), 8)
    page = describe_plan(found)
    assert [group.waves for group in found.forecast.groups] == [((client,),) for client in range(8)]
    assert llm in page
    # sixteen held-out pictures of 576 tokens of width 1024 in float16; those for training are not kept
    assert found.features == 2 * 16 * 576 * 1024
    assert found.forecast.rounds[0].most["bytes/up"] >= 8 * 4 * update, "every client sends its update in float32"
    # the hours that LLaVA's README has for 558,128 pairs on eight A100
    assert found.effort is not None
    published = found.effort.seconds["A100"] / found.effort.rows * 558_128 / 8 / 3600
    assert 0.95 * hours < published < 1.3 * hours
    assert "A100" in page


def exported(config: str, tower: Path, llm: Path, folder: Path) -> tuple[Any, Any]:
    """The processor and the model of the export of a short run, as transformers reads them."""
    more = [f"model.tower={tower}", f"model.llm={llm}", f"run.dir={folder / 'run'}", "data.held_out_per_domain=4"]
    more += ["federation.rounds=1", "federation.evaluate_every=1", "federation.local_steps=1", "partition.clients=2"]
    train(load_config(CONFIGS / f"{config}.yaml", [*TINY, *more, "federation.batch_size=1"]))
    assert export_run(folder / "run", "hf", folder / "hf").proof.difference < 0.05
    processor = hf.AutoProcessor.from_pretrained(folder / "hf", use_fast=False)
    return processor, hf.LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype="auto")


def test_siglip_and_qwen_as_published_train_and_are_exported(tmp_path: Path) -> None:
    depth = {"num_hidden_layers": 2}
    tower = published_models.siglip(tmp_path / "tower", text=published_models.SMALL_TEXT, vision=depth)
    llm = published_models.qwen(tmp_path / "llm", **depth, max_window_layers=2, vocab_size=512)
    published_models.fill(tower, hf.SiglipModel)
    published_models.fill(llm, hf.Qwen2ForCausalLM)
    processor, model = exported("small_24gb", tower, llm, tmp_path)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (896, 768)
    picture = Image.new("RGB", (300, 200), (255, 0, 0))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert "<|im_start|>user\n<image>a red<|im_end|>" in prompt
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    assert inputs["pixel_values"][0, :, 5, 5].tolist() == [1, -1, -1], "mean and deviation 0.5"
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == 196


@pytest.mark.slow
def test_clip_and_vicuna_as_published_train_and_are_exported(tmp_path: Path) -> None:
    depth = {"num_hidden_layers": 1}
    tower = published_models.clip(tmp_path / "tower", text=published_models.SMALL_TEXT, vision={"num_hidden_layers": 2})
    llm = published_models.vicuna(tmp_path / "vicuna", **depth, intermediate_size=512, vocab_size=320)
    published_models.fill(tower, hf.CLIPModel)
    published_models.fill(llm, hf.LlamaForCausalLM)
    processor, model = exported("llava15_7b", tower, llm, tmp_path)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (4096, 1024)
    parts = [{"type": "image"}, {"type": "text", "text": "Is it red?"}]
    asked = "USER: <image>\nIs it red? ASSISTANT:"
    for content in (parts, "<image>\nIs it red?"):  # as transformers and as lmms-eval ask
        chat = [{"role": "user", "content": content}]
        for reader in (processor, processor.tokenizer):
            prompt = reader.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            assert prompt.startswith("A chat between a curious user and")
            assert prompt.endswith(asked)
    inputs = processor(images=Image.new("RGB", (300, 200), (0, 0, 0)), text=prompt, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    black = [-mean / std for mean, std in zip(
        published_models.CLIP_PICTURES["image_mean"], published_models.CLIP_PICTURES["image_std"], strict=True
    )]  # fmt: skip
    assert inputs["pixel_values"][0, :, 5, 5].tolist() == pytest.approx(black)
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == 576
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
