"""The tables of families in docs/backbones.md, written from models that load; FEDCMP_REWRITE_GOLDEN=1 rewrites them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from models.tiny import LLMS, TOWERS, llava_holds, llava_selects

from fedcmp.models.backbones import ModelConfig, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower

Folder = Callable[[str], Path]
PAGE = Path(__file__).parent.parent.parent / "docs" / "backbones.md"


def compare(name: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Compares a table with the page, or writes it."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    found = "\n".join(f"|{'|'.join(line)}|" for line in lines)
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    new = pattern.sub(lambda match: f"{match[1]}{found}\n{match[2]}", page)
    if os.environ.get("FEDCMP_REWRITE_GOLDEN") == "1":
        PAGE.write_text(new, encoding="utf-8")
    assert found in page, f"docs/backbones.md: the table {name!r} is not that of the models; rewrite the page"


def place_of(model: Any, layer: Any) -> str:
    """Where in a model its blocks are kept."""
    return next(name for name, module in model.named_modules() if module is layer).rpartition(".")[0]


@pytest.mark.slow
def test_the_tables_are_those_of_the_models(tower_folder: Folder, llm_folder: Folder) -> None:
    towers, llms = [], []
    for name, one in TOWERS.items():
        tower = load_tower(ModelConfig(tower=str(tower_folder(name))))
        blocks = f"`{place_of(tower.model, tower.blocks[0])}`" if tower.blocks else "feature map"
        kind = f"`{tower.model.config.model_type}`"
        towers.append((one.stands_for, kind, blocks, tower.num_prefix, llava_selects(name)))
    for name, one in LLMS.items():
        llm = load_llm(ModelConfig(llm=str(llm_folder(name))))
        config = llm.model.config
        place, kind = f"`{place_of(llm.model, llm.layers[0])}`", f"`{config.model_type}`"
        llms.append((one.stands_for, kind, place, config._attn_implementation, llava_holds(llm)))
    head = ("family", "`model_type`")
    compare("towers", (*head, "blocks", "tokens before the patches", "exports to transformers"), towers)
    compare("llms", (*head, "decoder layers", "attention", "Llava of transformers computes the same"), llms)


def test_real_shapes_are_known_without_weights(tmp_path: Path) -> None:
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 384,
              "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}  # fmt: skip
    qwen = {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "tie_word_embeddings": True}  # fmt: skip
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "config.json").write_text(json.dumps(siglip))
    assert outline_tower(ModelConfig(tower=str(tmp_path), pixel_shuffle=3))[:2] == (10368, 81)
    (tmp_path / "config.json").write_text(json.dumps(qwen))
    llm = outline_llm(ModelConfig(llm=str(tmp_path), llm_dtype="bfloat16"))
    assert (llm.width, llm.num_bytes) == (896, pytest.approx(2 * 494_032_768, rel=1e-5))
