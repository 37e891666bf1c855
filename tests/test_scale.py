"""The configs for real data and models: planned with true shapes, trained with tiny models of the same families."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from data import published
from data.published import record
from models.tiny import save_llm, save_tower
from PIL import Image

from fedcmp.config import load_config
from fedcmp.report.plan import describe_plan
from fedcmp.runs.plan import plan
from fedcmp.runs.train import train

CONFIGS = Path(__file__).parent.parent / "configs" / "scale"
COLOURS = ("red", "blue")
VICUNA = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


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


def shapes_only(folder: Path, size: str) -> tuple[Path, Path]:
    """What the hub has of CLIP ViT-L/14-336 and Vicuna, without a weight."""
    tower, llm = folder / "tower", folder / "llm"
    hf.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    ).save_pretrained(tower)  # fmt: skip
    side = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    hf.CLIPImageProcessorPil(**side).save_pretrained(tower)
    hf.LlamaConfig(**VICUNA[size], vocab_size=32000, max_position_embeddings=4096).save_pretrained(llm)
    return tower, llm


@pytest.mark.parametrize(("size", "update", "llm"), [("7b", 20_979_712, "13.5 GB"), ("13b", 31_467_520, "26.0 GB")])
def test_the_plan_of_a_node_of_eight_gpus(size: str, update: int, llm: str, tmp_path: Path) -> None:
    tower, shape = shapes_only(tmp_path, size)
    words = [f"model.tower={tower}", f"model.llm={shape}", "data.held_out_per_domain=16", "run.device=cpu"]
    found = plan(load_config(CONFIGS / f"llava15_{size}.yaml", [*words, "federation.batch_size=2", *SHORT]), 8)
    page = describe_plan(found)
    assert [group.waves for group in found.forecast.groups] == [((client,),) for client in range(8)]
    assert llm in page
    # sixteen held-out pictures of 576 tokens of width 1024 in float16; those for training are not kept
    assert found.features == 2 * 16 * 576 * 1024
    assert found.forecast.rounds[0].most["bytes/up"] >= 8 * 4 * update, "every client sends its update in float32"
