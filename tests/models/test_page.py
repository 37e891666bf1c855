"""The tables of docs/backbones.md, written from models that load. FEDCMP_REWRITE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from models.tiny import LLMS, MAPS, TOWERS
from models.verdicts import llava_holds, llava_selects

from fedcmp.models.backbones import ModelConfig, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower
from fedcmp.models.projector import ProjectorConfig, param_shapes

Folder = Callable[[str], Path]
PAGE = Path(__file__).parent.parent.parent / "docs" / "backbones.md"
LLAVA_PICTURES = 558_128

VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
BIG_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CLIP ViT-L/14-336": (
        {"model_type": "clip_vision_model", **VIT_L, "intermediate_size": 4096, "image_size": 336, "patch_size": 14},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "crop_size": 336},
    ),
    "SigLIP so400m/14-384": (
        {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}},
    ),
    "DINOv2 L/14, 224": (
        {"model_type": "dinov2", **VIT_L, "mlp_ratio": 4, "image_size": 518, "patch_size": 14},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": 224},
    ),
}
READ: dict[str, Sequence[dict[str, Any]]] = {
    "CLIP ViT-L/14-336": (
        {},
        {"token_grid": 12},
        {"pixel_shuffle": 2},
        {"pixel_shuffle": 3},
        {"feature_layer": [-2, -5, -8]},
    ),
    "SigLIP so400m/14-384": ({}, {"token_grid": 9}, {"pixel_shuffle": 3}),
    "DINOv2 L/14, 224": ({}, {"feature_layer": -1}, {"pixel_shuffle": 2}),
}
LLAMA = {"model_type": "llama", "vocab_size": 32000}
BIG_LLMS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Vicuna-7B": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "Vicuna-13B": {
        **LLAMA,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)


def hold(name: str, found: str) -> None:
    """Compares with the page, or writes it."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert len(pattern.findall(page)) == 1, f"docs/backbones.md has no place for the table {name!r}"
    new = pattern.sub(lambda match: f"{match[1]}{found}\n{match[2]}", page)
    if os.environ.get("FEDCMP_REWRITE_GOLDEN") == "1":
        PAGE.write_text(new, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == new, f"the table {name!r} is not what the models are; rewrite the page"


def place_of(model: Any, layer: Any) -> str:
    """Where in a model its blocks are kept."""
    return next(name for name, module in model.named_modules() if module is layer).rpartition(".")[0]


def test_the_table_of_towers(tower_folder: Folder) -> None:
    rows = []
    for name, one in TOWERS.items():
        tower = load_tower(ModelConfig(tower=str(tower_folder(name))))
        config = tower.model.config
        shape = f"{TOWERS[name].options.get('num_hidden_layers', '')} x {tower.width}".removeprefix(" x ")
        blocks = f"`{place_of(tower.model, tower.blocks[0])}`" if tower.blocks else "feature map"
        rows.append((one.stands_for, f"`{config.model_type}`", shape, blocks, tower.num_prefix, llava_selects(name)))
        assert (name in MAPS) == tower.is_map
    head = (
        "family",
        "`model_type`",
        "tiny model: layers x width",
        "blocks",
        "tokens before the patches",
        "Llava selects the same",
    )
    hold("towers", table(head, rows))


def test_the_table_of_llms(llm_folder: Folder) -> None:
    rows = []
    for name, one in LLMS.items():
        llm = load_llm(ModelConfig(llm=str(llm_folder(name))))
        config = llm.model.config
        shape = f"{config.num_hidden_layers} x {config.hidden_size}"
        place = f"`{place_of(llm.model, llm.layers[0])}`"
        rows.append(
            (
                one.stands_for,
                f"`{config.model_type}`",
                shape,
                place,
                config._attn_implementation,
                f"opening token {one.bos}",
                llava_holds(llm),
            )
        )
    head = (
        "family",
        "`model_type`",
        "tiny model: layers x width",
        "decoder layers",
        "attention",
        "tokenizer of the test",
        "Llava of transformers computes the same",
    )
    hold("llms", table(head, rows))


def folder_of(config: dict[str, Any], tmp_path: Path, processor: dict[str, Any] | None = None) -> str:
    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(tmp_path)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.2f} MB"


def test_the_sizes_of_real_towers(tmp_path: Path) -> None:
    rows = []
    for name, (config, processor) in BIG_TOWERS.items():
        folder = folder_of(config, tmp_path / str(len(rows)), processor)
        for options in READ[name]:
            found = outline_tower(ModelConfig(tower=folder, **options))
            assert found is not None, name
            one = 2 * found.tokens * found.width
            rows.append(
                (
                    name,
                    " ".join(f"`{key}: {value}`" for key, value in options.items()) or "as it is",
                    f"{found.tokens} x {found.width}",
                    gigabytes(found.num_bytes),
                    megabytes(one),
                    gigabytes(one * LLAVA_PICTURES),
                )
            )
    head = ("tower", "read", "tokens x width", "weights, float32", "features of a picture", "of 558,128")
    hold("tower sizes", table(head, rows))


def outlined(name: str, dtype: str, tmp_path: Path) -> Any:
    folder = folder_of(BIG_LLMS[name], tmp_path / name)
    found = outline_llm(ModelConfig(llm=folder, llm_dtype=dtype))
    assert found is not None, name
    return found


def test_the_sizes_of_real_llms(tmp_path: Path) -> None:
    rows = []
    for name in BIG_LLMS:
        half, full = (outlined(name, dtype, tmp_path) for dtype in ("bfloat16", "float32"))
        weights = f"{half.num_bytes / 2e9:.2f} billion"
        rows.append((name, half.width, weights, *map(gigabytes, (half.num_bytes, half.layer_bytes, full.num_bytes))))
    head = ("LLM", "width D", "parameters", "bfloat16", "of which layers (`launch.shard_llm`)", "float32")
    hold("llm sizes", table(head, rows))


def test_the_sizes_of_real_projectors(tmp_path: Path) -> None:
    rows, counts = [], {}
    for tower, options in (
        ("CLIP ViT-L/14-336", {}),
        ("CLIP ViT-L/14-336", {"pixel_shuffle": 2}),
        ("SigLIP so400m/14-384", {}),
        ("SigLIP so400m/14-384", {"pixel_shuffle": 3}),
    ):
        config, processor = BIG_TOWERS[tower]
        found = outline_tower(ModelConfig(tower=folder_of(config, tmp_path / tower[:4], processor), **options))
        assert found is not None
        for llm in BIG_LLMS:
            shapes = param_shapes(found.width, outlined(llm, "bfloat16", tmp_path).width, ProjectorConfig()).values()
            count = sum(rows_ * (shape[1] if len(shape) > 1 else 1) for shape in shapes for rows_ in shape[:1])
            read = " ".join(f"`{key}: {value}`" for key, value in options.items()) or "as it is"
            rows.append((tower, read, llm, f"{count:,}", megabytes(4 * count)))
            counts[tower, read, llm] = count
    assert counts["CLIP ViT-L/14-336", "as it is", "Vicuna-7B"] == 20_979_712, "that of LLaVA-1.5 7B"
    hold("projector sizes", table(("tower", "read", "LLM", "parameters", "float32"), rows))


@pytest.mark.parametrize("name", BIG_LLMS)
def test_the_shapes_are_those_of_the_classes(name: str) -> None:
    """A key that a family does not know would be taken for a note and change nothing."""
    config = transformers.AutoConfig.for_model(**BIG_LLMS[name])
    assert all(getattr(config, key) == value for key, value in BIG_LLMS[name].items())
    assert BIG_LLMS[name].keys() <= type(config)().to_dict().keys()
