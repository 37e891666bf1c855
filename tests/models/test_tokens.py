"""Which tokens are left: averaging, pixel shuffle, and what does not fit is said before a weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.tiny import TOWERS
from PIL import Image

from fedcmp.config import load_config, to_yaml
from fedcmp.errors import ConfigError
from fedcmp.models.backbones import ModelConfig, VisionTower, load_tower
from fedcmp.models.loading import hash_weights
from fedcmp.models.outline import feature_width, outline_tower
from fedcmp.models.tokens import average, check_grid, pixel_shuffle
from fedcmp.runs.train import train
from fedcmp.tracking.progress import Progress

Folder = Callable[[str], Path]
PICTURES = [Image.effect_noise((24, 24), 80).convert("RGB") for _ in range(2)]


def features(side: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randn(2, side * side, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_is_that_of_idefics3_and_internvl(factor: int) -> None:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel

    x = features(width=factor * 2)
    ours = pixel_shuffle(x, (6, 6), factor)
    assert ours.shape == (2, 36 // factor**2, x.shape[2] * factor**2)
    assert torch.equal(ours, Idefics3Connector.pixel_shuffle(None, x, factor))
    if factor == 2:  # 6 % (1 / 3) is not 0 in floating point
        theirs = InternVLModel.pixel_shuffle(None, x.unflatten(1, (6, 6)), 1 / factor)
        assert torch.equal(ours, theirs.flatten(1, 2))


def test_pixel_shuffle_puts_neighbours_side_by_side_and_loses_nothing() -> None:
    x = features()
    shuffled = pixel_shuffle(x, (6, 6), 2)
    maps = x.unflatten(1, (6, 6))
    for row in range(3):
        for column in range(3):
            block = maps[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(shuffled[:, 3 * row + column], block.flatten(1))
    back = shuffled.view(2, 3, 3, 2, 2, 5).transpose(2, 3).reshape(2, 36, 5)
    assert torch.equal(back, x)


def test_averages_are_means_of_the_shuffled_neighbours() -> None:
    x = features()
    folded = pixel_shuffle(x, (6, 6), 3).unflatten(2, (9, 5)).mean(2)
    torch.testing.assert_close(average(x, (6, 6), 2), folded)


@pytest.mark.parametrize(("grid", "token_grid", "shuffle", "message"), [
    ((6, 6), 7, 1, r"model\.token_grid=7, but the tower gives 36 tokens; expected at most the side of their grid, 6"),
    ((6, 6), 0, 4, r"model\.pixel_shuffle=4 does not divide the grid of 6 x 6 tokens; it could be 1, 2, 3, 6"),
    ((6, 6), 4, 3, r"model\.pixel_shuffle=3 does not divide the grid of 4 x 4 tokens; it could be 1, 2, 4"),
    ((4, 9), 2, 1, r"model\.token_grid=2 needs a square grid, but the tower gives 4 x 9 tokens"),
    ((4, 9), 0, 2, r"model\.pixel_shuffle=2 needs a square grid, but the tower gives 4 x 9 tokens"),
])  # fmt: skip
def test_grids_that_do_not_fit(grid: tuple[int, int], token_grid: int, shuffle: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_grid(grid, token_grid, shuffle)
    check_grid(grid, 0, 1)


@pytest.mark.parametrize(("options", "message"), [
    ({"feature_layer": "last"}, r"model\.feature_layer must be a whole number, or a list .* got 'last'"),
    ({"feature_layer": -2.5}, r"model\.feature_layer must be a whole number"),
    ({"feature_layer": True}, r"model\.feature_layer must be a whole number"),
    ({"feature_layer": []}, r"model\.feature_layer must be a whole number.* got \[\]"),
    ({"feature_layer": [-2, "-5"]}, r"model\.feature_layer must be a whole number.*'-5'"),
    ({"feature_layer": [-2, -5, -2]}, r"model\.feature_layer names a layer twice: \[-2, -5, -2\]"),
    ({"pixel_shuffle": 0}, r"model\.pixel_shuffle must be 1 or more.*got 0"),
    ({"pixel_shuffle": 2, "keep_cls": True}, r"model\.pixel_shuffle must be .* 1 with model\.keep_cls, got 2"),
    ({"pixel_shuffle": 2, "token_grid": 3}, r"model\.pixel_shuffle=2 does not divide model\.token_grid=3"),
], ids=str)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**options).validate()


def test_a_list_of_layers_survives_yaml_and_overrides(tmp_path: Path) -> None:
    config = load_config(None, ["model.feature_layer=[-2,-3]", "model.pixel_shuffle=2"])
    assert config.model.layers == (-2, -3)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(None, ["model.feature_layer=-1"]).model.layers == (-1,)
    with pytest.raises(ConfigError, match=r"model\.feature_layer must be"):
        load_config(None, ["model.feature_layer=deep"])


@pytest.mark.parametrize(("options", "message"), [
    ({"feature_layer": -5}, r"model\.feature_layer is -5, but the tower has only 3 blocks; expected -4 to 3"),
    ({"feature_layer": [-2, 4]}, r"model\.feature_layer is 4, but the tower has only 3 blocks"),
    ({"token_grid": 7}, r"model\.token_grid=7, but the tower gives 36 tokens"),
    ({"pixel_shuffle": 4}, r"model\.pixel_shuffle=4 does not divide the grid of 6 x 6"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["clip", "siglip2-naflex", "vit"])
def test_what_does_not_fit_is_said_before_weights_are_read(
    name: str, options: dict[str, Any], message: str, tower_folder: Folder, tmp_path: Path
) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(tower_folder(name) / file, tmp_path)
    config = ModelConfig(tower=str(tmp_path), **options)
    for look in (outline_tower, load_tower):
        with pytest.raises(ConfigError, match=message):
            look(config)
    with pytest.raises(ConfigError, match=r"model\.tower: .* cannot be loaded: .*model\.safetensors"):
        load_tower(ModelConfig(tower=str(tmp_path)))


def test_a_run_says_it_before_it_reads_data_or_makes_a_folder(tmp_path: Path) -> None:
    config = load_config(None, [f"run.dir={tmp_path / 'run'}", "model.pixel_shuffle=3", "data.domains=[nowhere]"])
    with pytest.raises(ConfigError, match=r"model\.pixel_shuffle=3 does not divide the grid of 4 x 4"):
        train(config, progress=Progress(enabled=False))
    assert not (tmp_path / "run").exists()


class Wide:
    """A processor that keeps the shape of its pictures, 36 by 16 here."""

    def __call__(self, **kwargs: Any) -> Any:
        return {"pixel_values": torch.zeros(len(kwargs["images"]), 3, 36, 16)}


def test_tokens_of_a_wide_picture_are_no_square_grid() -> None:
    def model() -> Any:
        found = transformers.CLIPVisionModel(TOWERS["clip"].config(**TOWERS["clip"].options))
        forward = found.forward
        found.forward = lambda **kwargs: forward(interpolate_pos_encoding=True, **kwargs)
        return found

    assert VisionTower(model(), Wide()).grid == (9, 4)
    with pytest.raises(ConfigError, match=r"model\.pixel_shuffle=2 needs a square grid, but the tower gives 9 x 4"):
        VisionTower(model(), Wide(), pixel_shuffle=2)  # as many tokens as a grid of 6 x 6


@pytest.mark.parametrize("name", ["clip", "siglip", "mobilenet", "dinov2-registers", "siglip2-naflex"])
def test_grid_then_shuffle_of_several_layers(name: str, tower_folder: Folder) -> None:
    layers: int | list[int] = -2 if name == "mobilenet" else [-2, -3]
    folder, (side, factor) = str(tower_folder(name)), ((2, 2) if name == "mobilenet" else (4, 2))
    plain = load_tower(ModelConfig(tower=folder, feature_layer=layers))
    config = ModelConfig(tower=folder, feature_layer=layers, token_grid=side, pixel_shuffle=factor)
    tower = load_tower(config)
    with torch.inference_mode():
        pixels = plain.preprocess(PICTURES)
        expected = pixel_shuffle(average(plain.encode(pixels), plain.grid, side), (side, side), factor)
        torch.testing.assert_close(tower.encode(pixels), expected)
    outline = outline_tower(config)
    assert outline is not None
    assert outline[:2] == (tower.width, tower.num_tokens) == (plain.width * factor**2, side**2 // factor**2)
    if name != "mobilenet":  # its config.json says no width
        assert feature_width(config) == tower.width


def test_the_cache_key_changes_with_every_option_and_old_keys_live_on(tower_folder: Folder) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"feature_layer": -1},
        {"feature_layer": [-2, -3]},
        {"feature_layer": [-3, -2]},
        {"keep_cls": True},
        {"token_grid": 3},
        {"token_grid": 4},
        {"pixel_shuffle": 2},
        {"pixel_shuffle": 3},
        {"pixel_shuffle": 2, "token_grid": 4},
    ]
    for name in TOWERS:
        towers = [
            load_tower(ModelConfig(tower=str(tower_folder(name)), **one))
            for one in (options if name == "clip" else [{}])
        ]
        assert len({tower.fingerprint for tower in towers}) == len(towers)
        for tower, one in zip(towers, options, strict=False):
            before_shuffle = "pixel_shuffle" not in one
            layer = one.get("feature_layer", -2)
            old = (tower.processor.to_json_string(), layer, tower.drop_cls, one.get("token_grid", 0))
            known = name in ("clip", "siglip", "mobilenet", "convnext", "resnet", "siglip2-naflex")
            assert (hash_weights(tower.model, *old) == tower.fingerprint) == (before_shuffle and known), (name, one)
    same = load_tower(ModelConfig(tower=str(tower_folder("clip")), feature_layer=[-2]))
    assert same.fingerprint == load_tower(ModelConfig(tower=str(tower_folder("clip")))).fingerprint
