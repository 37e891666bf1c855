"""What configs tell before weights are read is what the loaded models are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import LanguageModel, ModelConfig, VisionTower, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower


def num_bytes(module: torch.nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def test_the_embedded_models(tower: VisionTower, llm: LanguageModel) -> None:
    assert outline_tower(ModelConfig()) == (tower.width, tower.num_tokens, num_bytes(tower.model))
    assert (outline_llm(ModelConfig()) or ())[:3] == (llm.width, num_bytes(llm.model), num_bytes(llm.layers))


def test_what_the_config_chooses_is_seen() -> None:
    half = outline_llm(ModelConfig(llm_dtype="bfloat16"))
    assert half is not None
    assert half.num_bytes < 0.6 * num_bytes(load_llm(ModelConfig()).model)
    pooled, kept = outline_tower(ModelConfig(token_grid=2)), outline_tower(ModelConfig(keep_cls=True))
    assert pooled is not None
    assert kept is not None
    assert (pooled.tokens, kept.tokens) == (4, 17)
    with pytest.raises(ConfigError, match="has only"):
        outline_tower(ModelConfig(feature_layer=-9))


def test_a_full_clip_config_gives_its_vision_part(tmp_path: Path) -> None:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 8})
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    outline, loaded = outline_tower(ModelConfig(tower=str(tmp_path))), load_tower(ModelConfig(tower=str(tmp_path)))
    assert outline == (loaded.width, loaded.num_tokens, num_bytes(loaded.model)) == (8, 4, num_bytes(loaded.model))


def test_what_is_not_on_this_machine_is_unknown(tmp_path: Path) -> None:
    away = ModelConfig(tower="nobody/no-such-tower", llm="nobody/no-such-llm")
    assert outline_tower(away) is outline_llm(away) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never heard of"}))
    strange = ModelConfig(tower=str(tmp_path), llm=str(tmp_path))
    assert outline_tower(strange) is outline_llm(strange) is None
    with pytest.raises(ConfigError, match=r"model\.tower: no folder"):
        outline_tower(ModelConfig(tower="./nowhere"))


@pytest.mark.shared
def test_a_tower_of_feature_maps(shared: Path) -> None:
    outline = outline_tower(ModelConfig(tower=str(shared / "weights" / "mobilenet_v2_1.0_224")))
    assert outline is not None
    assert (outline.width, outline.tokens) == (1280, 49)
