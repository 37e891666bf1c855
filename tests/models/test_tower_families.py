"""Every family of towers: the hidden states that transformers itself gives, and those that Llava selects."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import MAPS, TOWERS, make_processor, save_tower, vision_model
from models.verdicts import PREFIX, llava_selects
from PIL import Image

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import ModelConfig, VisionTower, load_tower
from fedcmp.models.families import TESTED_TOWERS
from fedcmp.models.outline import outline_tower

Folder = Callable[[str], Path]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(one) for one in PIXELS]
LAYERS: tuple[int | list[int], ...] = (-1, -2, 0, [-2, -3], [-4, -1, 2])
TRANSFORMERS = [name for name in TOWERS if name not in MAPS]


def load(folder: Folder, name: str, **options: Any) -> VisionTower:
    return load_tower(ModelConfig(tower=str(folder(name)), **options))


def whole_model(folder: Folder, name: str) -> Any:
    return type(vision_model(TOWERS[name].config(**TOWERS[name].options))).from_pretrained(folder(name)).eval()


def own_states(model: Any, pixels: torch.Tensor, name: str) -> Any:
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if name == "siglip2-naflex":
        inputs |= {"pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.long)}
        inputs |= {"spatial_shapes": torch.full((len(pixels), 2), 6)}
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_hidden_states_are_those_of_the_whole_model(name: str, layer: int | list[int], tower_folder: Folder) -> None:
    tower = load(tower_folder, name, feature_layer=layer)
    kept = load(tower_folder, name, feature_layer=layer, keep_cls=True)
    pixels = tower.preprocess(PICTURES)
    states = own_states(whole_model(tower_folder, name), pixels, name).hidden_states
    wanted = [layer] if isinstance(layer, int) else layer
    expected = torch.cat([states[one] for one in wanted], -1)
    skip = PREFIX.get(name, 0)
    with torch.inference_mode():
        torch.testing.assert_close(tower.encode(pixels), expected[:, skip:])
        torch.testing.assert_close(kept.encode(pixels), expected)
        assert torch.equal(tower.encode(pixels), tower.encode(pixels)), "features are not the same twice"
    assert (tower.num_tokens, kept.num_tokens, tower.width) == (36, 36 + skip, 16 * len(wanted))
    deepest = max(one if one >= 0 else 4 + one for one in wanted)
    assert len(tower.blocks) == max(1, deepest), "blocks that nobody reads cost compute"
    assert sum("attn" in key or "attention" in key for key in tower.model.state_dict()) > 0


@pytest.mark.parametrize("name", TOWERS)
def test_dropped_blocks_are_gone_and_the_outline_knows(name: str, tower_folder: Folder) -> None:
    for layer in (-1, -3, [-2, -3]) if name not in MAPS else (-2,):
        config = ModelConfig(tower=str(tower_folder(name)), feature_layer=layer)
        tower = load_tower(config)
        num_bytes = sum(value.nbytes for value in (*tower.model.parameters(), *tower.model.buffers()))
        assert outline_tower(config) == (tower.width, tower.num_tokens, num_bytes)
        assert not any(value.requires_grad for value in tower.parameters())
        assert tower.state_dict().keys() == {f"model.{key}" for key in tower.model.state_dict()}
        assert load_tower(config).fingerprint == tower.fingerprint
        assert tower.model.config.model_type in TESTED_TOWERS


@pytest.mark.parametrize("name", sorted(MAPS))
def test_feature_maps_are_the_last_ones_row_by_row(name: str, tower_folder: Folder) -> None:
    tower = load(tower_folder, name)
    pixels = tower.preprocess(PICTURES)
    last = own_states(whole_model(tower_folder, name), pixels, name).last_hidden_state
    with torch.inference_mode():
        features = tower.encode(pixels)
    for row in range(tower.grid[0]):
        for column in range(tower.grid[1]):
            token = row * tower.grid[1] + column
            expected = last[:, token] if last.dim() == 3 else last[:, :, row, column]
            torch.testing.assert_close(features[:, token], expected)
    with pytest.raises(ConfigError, match=r"model\.feature_layer is \[-2, -3\], but the tower gives feature maps"):
        load(tower_folder, name, feature_layer=[-2, -3])


@pytest.mark.parametrize("layer", [-2, [-2, -3], [-1, -2, -4]], ids=str)
@pytest.mark.parametrize("keep_cls", [False, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_llava_selects_the_same(name: str, keep_cls: bool, layer: int | list[int], tower_folder: Folder) -> None:
    tower = load(tower_folder, name, feature_layer=layer, keep_cls=keep_cls)
    config = transformers.LlavaConfig(
        vision_config=TOWERS[name].config(**TOWERS[name].options),
        text_config=transformers.LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        ),
        vision_feature_layer=layer,
    )
    llava = transformers.LlavaModel(config).eval()
    llava.vision_tower = whole_model(tower_folder, name)
    llava.multi_modal_projector = torch.nn.Identity()
    pixels, verdict = tower.preprocess(PICTURES), llava_selects(name)

    def theirs() -> torch.Tensor:
        strategy = "default" if tower.drop_cls else "full"
        found = llava.get_image_features(pixels, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
        return torch.stack(list(found.pooler_output))

    with torch.inference_mode():
        if verdict.startswith("no"):
            with pytest.raises(TypeError, match="spatial_shapes"):
                theirs()
        elif verdict == "yes" or keep_cls:
            torch.testing.assert_close(tower.encode(pixels), theirs())
        else:
            assert theirs().shape[1] == tower.num_tokens + PREFIX[name] - 1


def test_every_family_that_is_said_to_be_tested_is() -> None:
    loaded = {TOWERS[name].config(**TOWERS[name].options).model_type for name in TOWERS}
    full = {"clip", "siglip", "siglip2"}  # test_full_checkpoints_give_their_vision_part
    assert loaded | full == set(TESTED_TOWERS)


@pytest.mark.parametrize(("name", "full"), [("clip", "CLIP"), ("siglip", "Siglip"), ("siglip2-naflex", "Siglip2")])
def test_full_checkpoints_give_their_vision_part(name: str, full: str, tmp_path: Path, tower_folder: Folder) -> None:
    text = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = getattr(transformers, f"{full}Config")(vision_config=TOWERS[name].options, text_config=text)
    both = getattr(transformers, f"{full}Model")(config).eval()
    both.save_pretrained(tmp_path)
    make_processor(name).save_pretrained(tmp_path)
    tower = load_tower(ModelConfig(tower=str(tmp_path)))
    pixels = tower.preprocess(PICTURES)
    states = own_states(both.vision_model, pixels, name).hidden_states[-2]
    with torch.inference_mode():
        torch.testing.assert_close(tower.encode(pixels), states[:, PREFIX.get(name, 0) :])
    outline = outline_tower(ModelConfig(tower=str(tmp_path)))
    assert outline is not None
    assert outline[:2] == (16, 36)


def test_naflex_towers_see_every_picture_as_a_square(tower_folder: Folder) -> None:
    tower = load(tower_folder, "siglip2-naflex")
    square = PICTURES[0].resize((24, 24), tower.processor.resample)
    theirs = tower.processor(images=[square], return_tensors="pt", max_num_patches=36)
    assert theirs["spatial_shapes"].tolist() == [[6, 6]]
    torch.testing.assert_close(tower.preprocess(PICTURES[:1]), theirs["pixel_values"])
    wide = Image.fromarray(PIXELS[0][:20])
    assert tower.preprocess([wide, PICTURES[0]]).shape == (2, 36, 4 * 4 * 3)


def test_a_tower_that_hides_patches_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTMAEConfig(**TOWERS["vit"].options, mask_ratio=0.5)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    make_processor("vit").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.tower: a tower of type vit_mae gives 18 image tokens.*\(6 x 6\)"):
        load_tower(ModelConfig(tower=str(tmp_path)))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
def test_a_processor_that_needs_torchvision_says_so(tmp_path: Path) -> None:
    save_tower("dinov3", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 24, "width": 24}})
    )
    with pytest.raises(ConfigError, match=r"model\.tower: .* cannot be loaded: .*[Tt]orchvision"):
        load_tower(ModelConfig(tower=str(tmp_path)))
