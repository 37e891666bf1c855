"""Every family of towers: the hidden states that transformers itself gives, those that Llava selects, fewer tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import MAPS, TOWERS, families, make_processor, vision_model
from PIL import Image

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import ModelConfig, VisionTower, load_tower
from fedcmp.models.outline import describe_tower, outline_tower
from fedcmp.models.towers import average, check_grid, pixel_shuffle

Folder = Callable[[str], Path]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(one) for one in PIXELS]
LAYERS: tuple[int | list[int], ...] = (-1, -2, 0, [-2, -3], [-4, -1, 2])
every_transformer = families(name for name in TOWERS if name not in MAPS)


def load(folder: Folder, name: str, **options: Any) -> VisionTower:
    return load_tower(ModelConfig(tower=str(folder(name)), **options))


def whole_model(folder: Folder, name: str) -> Any:
    return type(vision_model(TOWERS[name].config)).from_pretrained(folder(name)).eval()


def own_states(model: Any, pixels: torch.Tensor, name: str) -> Any:
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if name == "siglip2-naflex":
        inputs |= {"pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.long)}
        inputs |= {"spatial_shapes": torch.full((len(pixels), 2), 6)}
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True)


@every_transformer
def test_hidden_states_are_those_of_the_whole_model(name: str, tower_folder: Folder) -> None:
    for layer in LAYERS:
        config = ModelConfig(tower=str(tower_folder(name)), feature_layer=layer)
        tower, kept = load_tower(config), load(tower_folder, name, feature_layer=layer, keep_cls=True)
        pixels = tower.preprocess(PICTURES)
        states = own_states(whole_model(tower_folder, name), pixels, name).hidden_states
        wanted, skip = config.layers, TOWERS[name].prefix
        expected = torch.cat([states[one] for one in wanted], -1)
        with torch.inference_mode():
            torch.testing.assert_close(tower.encode(pixels), expected[:, skip:])
            torch.testing.assert_close(kept.encode(pixels), expected)
        assert (tower.num_tokens, kept.num_tokens, tower.width) == (36, 36 + skip, 16 * len(wanted))
        deepest = max(one if one >= 0 else 4 + one for one in wanted)
        assert len(tower.blocks) == max(1, deepest), "blocks that are not read are dropped"
        assert outline_tower(config) == outline_tower(config) == describe_tower(tower), "found and remembered"


def test_a_second_tower_of_a_model_reads_the_same_layer(tower_folder: Folder) -> None:
    first = load(tower_folder, "clip")
    second = VisionTower(first.model, first.processor)
    pixels = first.preprocess(PICTURES)
    with torch.inference_mode():
        assert torch.equal(first.encode(pixels), second.encode(pixels))
    with pytest.raises(ConfigError, match=r"model\.feature_layer"):
        VisionTower(first.model, first.processor, feature_layer=-1)


@families(sorted(MAPS))
def test_feature_maps_are_the_last_ones_row_by_row(name: str, tower_folder: Folder) -> None:
    tower = load(tower_folder, name)
    pixels = tower.preprocess(PICTURES)
    last = own_states(whole_model(tower_folder, name), pixels, name).last_hidden_state
    with torch.inference_mode():
        features = tower.encode(pixels)
    rows, columns = tower.grid
    expected = last if last.dim() == 3 else last.permute(0, 2, 3, 1).reshape(len(last), rows * columns, -1)
    torch.testing.assert_close(features, expected)
    assert outline_tower(ModelConfig(tower=str(tower_folder(name)))) == describe_tower(tower)
    with pytest.raises(ConfigError, match=r"model\.feature_layer is \[-2, -3\]"):
        load(tower_folder, name, feature_layer=[-2, -3])


@pytest.mark.parametrize(("name", "full"), [("clip", "CLIP"), ("siglip", "Siglip"), ("siglip2-naflex", "Siglip2")])
def test_full_checkpoints_give_their_vision_part(name: str, full: str, tmp_path: Path) -> None:
    text = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = getattr(transformers, f"{full}Config")(vision_config=TOWERS[name].options, text_config=text)
    both = getattr(transformers, f"{full}Model")(config).eval()
    both.save_pretrained(tmp_path)
    make_processor(name).save_pretrained(tmp_path)
    tower = load_tower(ModelConfig(tower=str(tmp_path)))
    pixels = tower.preprocess(PICTURES)
    states = own_states(both.vision_model, pixels, name).hidden_states[-2]
    with torch.inference_mode():
        torch.testing.assert_close(tower.encode(pixels), states[:, TOWERS[name].prefix :])
    assert outline_tower(ModelConfig(tower=str(tmp_path))) == describe_tower(tower)


def test_naflex_towers_get_every_picture_as_a_square(tower_folder: Folder) -> None:
    tower = load(tower_folder, "siglip2-naflex")
    square = PICTURES[0].resize((24, 24), tower.processor.resample)
    theirs = tower.processor(images=[square], return_tensors="pt", max_num_patches=36)
    assert theirs["spatial_shapes"].tolist() == [[6, 6]]
    torch.testing.assert_close(tower.preprocess(PICTURES[:1]), theirs["pixel_values"])
    assert tower.preprocess([Image.fromarray(PIXELS[0][:20]), PICTURES[0]]).shape == (2, 36, 4 * 4 * 3)


@pytest.mark.parametrize("options", [{"feature_layer": -5}, {"feature_layer": [-2, 4]}, {"token_grid": 7}], ids=str)
def test_what_does_not_fit_is_said_before_weights_are_read(
    options: dict[str, Any], tower_folder: Folder, tmp_path: Path
) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(tower_folder("clip") / file, tmp_path)
    with pytest.raises(ConfigError, match=rf"^model\.{next(iter(options))}"):
        outline_tower(ModelConfig(tower=str(tmp_path), **options))
    with pytest.raises(ConfigError, match=r"model\.tower: .* cannot be loaded"):
        load_tower(ModelConfig(tower=str(tmp_path)))


def test_tokens_of_a_wide_picture_are_no_square_grid_and_hidden_patches_are_refused(tmp_path: Path) -> None:
    def wide(**more: Any) -> VisionTower:
        """Its processor keeps the shape of its pictures, 36 by 16 here."""
        model = transformers.CLIPVisionModel(TOWERS["clip"].config)
        forward = model.forward
        model.forward = lambda **kwargs: forward(interpolate_pos_encoding=True, **kwargs)
        return VisionTower(model, lambda images, **_: {"pixel_values": torch.zeros(len(images), 3, 36, 16)}, **more)

    assert wide().grid == (9, 4)
    with pytest.raises(ConfigError, match=r"model\.pixel_shuffle=2 .* 9 x 4"):
        wide(pixel_shuffle=2)  # as many tokens as a grid of 6 x 6
    hidden = transformers.ViTMAEConfig(**TOWERS["vit"].options, mask_ratio=0.5)
    transformers.ViTMAEModel(hidden).save_pretrained(tmp_path)
    make_processor("vit").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.tower: a vit_mae gives 18 tokens"):
        load_tower(ModelConfig(tower=str(tmp_path)))


@families(["clip", "mobilenet"])
def test_grid_then_shuffle_of_several_layers(name: str, tower_folder: Folder) -> None:
    layers, side, factor = (-2, 2, 2) if name == "mobilenet" else ([-2, -3], 4, 2)
    config = ModelConfig(tower=str(tower_folder(name)), feature_layer=layers, token_grid=side, pixel_shuffle=factor)
    plain, tower = load(tower_folder, name, feature_layer=layers), load_tower(config)
    with torch.inference_mode():
        pixels = plain.preprocess(PICTURES)
        expected = pixel_shuffle(average(plain.encode(pixels), plain.grid, side), (side, side), factor)
        torch.testing.assert_close(tower.encode(pixels), expected)
    assert outline_tower(config)[:2] == (tower.width, tower.num_tokens) == tuple(reversed(expected.shape[1:]))


def test_the_cache_key_changes_with_every_option(tower_folder: Folder) -> None:
    options: list[dict[str, Any]] = [
        {}, {"feature_layer": -1}, {"feature_layer": [-2, -3]}, {"feature_layer": [-3, -2]}, {"keep_cls": True},
        {"token_grid": 3}, {"pixel_shuffle": 3}, {"pixel_shuffle": 2}, {"pixel_shuffle": 2, "token_grid": 4},
        {"tower_dtype": "bfloat16"},
    ]  # fmt: skip
    keys = [load(tower_folder, "clip", **one).fingerprint for one in options]
    assert len(set(keys)) == len(keys)
    assert load(tower_folder, "clip", feature_layer=[-2]).fingerprint == keys[0]
    tower = load(tower_folder, "clip").train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_pixel_shuffle_is_that_of_idefics3_and_internvl() -> None:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel

    x = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(0))
    ours = {factor: pixel_shuffle(x, (6, 6), factor) for factor in (2, 3)}
    for factor, found in ours.items():
        assert torch.equal(found, Idefics3Connector.pixel_shuffle(None, x, factor))
    theirs = InternVLModel.pixel_shuffle(None, x.unflatten(1, (6, 6)), 0.5)  # 6 % (1 / 3) is not 0 in floating point
    assert torch.equal(ours[2], theirs.flatten(1, 2))


def test_averages_are_means_of_the_shuffled_neighbours() -> None:
    x = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(0))
    folded = pixel_shuffle(x, (6, 6), 3).unflatten(2, (9, 5)).mean(2)
    torch.testing.assert_close(average(x, (6, 6), 2), folded)
    corner = x.unflatten(1, (6, 6))[:, :3, 3:].mean((1, 2))  # the quarter at the top right
    torch.testing.assert_close(average(x, (6, 6), 2)[:, 1], corner)


def test_grids_that_do_not_fit() -> None:
    for grid, token_grid, shuffle, key in (
        ((6, 6), 7, 1, "token_grid=7"), ((6, 6), 0, 4, "pixel_shuffle=4"), ((6, 6), 4, 3, "pixel_shuffle=3"),
        ((4, 9), 2, 1, "token_grid=2"), ((4, 9), 0, 2, "pixel_shuffle=2"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"model\.{key} .* {grid[0]} x {grid[1]} tokens"):
            check_grid(grid, token_grid, shuffle)
        check_grid(grid, 0, 1)
    check_grid((6, 6), 6, 2)
