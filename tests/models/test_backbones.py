"""Frozen towers: which layer, which tokens, and that nothing in them moves or drops out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import (
    DEMO,
    LanguageModel,
    ModelConfig,
    VisionTower,
    load_llm,
    load_tower,
    resolve,
    width_of,
)

PICTURES = [Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(3)]


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_dropped_blocks_change_nothing(layer: int) -> None:
    tower = load_tower(ModelConfig(feature_layer=layer))
    whole = transformers.CLIPVisionModel.from_pretrained(DEMO / "tower").float().eval()
    pixels = tower.preprocess(PICTURES)
    with torch.inference_mode():
        expected = whole(pixels, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(tower.encode(pixels), expected[:, 1:])
        kept = load_tower(ModelConfig(feature_layer=layer, keep_cls=True))
        torch.testing.assert_close(kept.encode(pixels), expected)
    assert (tower.num_tokens, kept.num_tokens, tower.width) == (16, 17, 96)
    assert tower.fingerprint != kept.fingerprint


def test_a_siglip_tower_has_no_class_token(tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    tower = load_tower(ModelConfig(tower=str(tmp_path)))
    assert tower.encode(tower.preprocess(PICTURES)).shape == (3, 4, 16)


def test_qwen2_reads_a_prefix_too(tmp_path: Path, llm: LanguageModel) -> None:
    config = transformers.Qwen2Config(
        vocab_size=len(llm.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = transformers.Qwen2ForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=0.7, repetition_penalty=1.1)
    model.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    other = load_llm(ModelConfig(llm=str(tmp_path), end="eos"))
    assert other.width == 16
    assert other.model.generation_config == transformers.GenerationConfig(), "captions are greedy, and nothing else"
    assert other.end_id == llm.tokenizer.eos_token_id


def test_frozen_and_always_in_eval_mode(tower: VisionTower, llm: LanguageModel) -> None:
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in [*tower.parameters(), *llm.model.parameters()])


def test_model_folders_are_checked_by_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.tower: no folder \./nowhere"):
        resolve("./nowhere", "tower", "model.tower")
    with pytest.raises(ConfigError, match=r"model\.llm: .* has no config\.json"):
        resolve(str(tmp_path), "llm", "model.llm")
    assert resolve("openai/clip-vit-large-patch14-336", "tower", "k") == "openai/clip-vit-large-patch14-336"
    for layer in (-5, -9):
        with pytest.raises(ConfigError, match=rf"feature_layer is {layer}, but the tower has only 4 blocks"):
            load_tower(ModelConfig(feature_layer=layer))
    with pytest.raises(ConfigError, match=r"model\.feature_layer counts from the end"):
        ModelConfig(feature_layer=1).validate()


def test_widths_are_read_from_configs(tmp_path: Path) -> None:
    assert width_of("demo", "tower", "k") == width_of("demo", "llm", "k") == 96
    nested = {"vision_config": {"hidden_size": 7}, "text_config": {"hidden_size": 5}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert width_of(str(tmp_path), "tower", "k") == 7
    assert width_of(str(tmp_path), "llm", "k") == 5
    assert width_of("some/hub-id", "llm", "k") is None


def test_tokens_are_averaged_over_the_grid(tower: VisionTower) -> None:
    pooled = load_tower(ModelConfig(token_grid=2))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, few = tower.encode(pixels), pooled.encode(pixels)
    assert (pooled.num_tokens, few.shape) == (4, (2, 4, 96))
    corner = whole.unflatten(1, (4, 4))[:, :2, 2:].mean((1, 2))  # the quarter at the top right
    torch.testing.assert_close(few[:, 1], corner)
    assert pooled.fingerprint != tower.fingerprint, "a cache must not mix them up"
    with pytest.raises(ConfigError, match=r"model\.token_grid=5, but the tower gives 16 tokens"):
        load_tower(ModelConfig(token_grid=5))
    with pytest.raises(ConfigError, match=r"model\.token_grid must be 0 or more"):
        ModelConfig(token_grid=2, keep_cls=True).validate()
