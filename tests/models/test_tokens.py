"""Averaging and pixel shuffle of image tokens, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedcmp.config import load_config, to_yaml
from fedcmp.errors import ConfigError
from fedcmp.models.settings import ModelConfig
from fedcmp.models.towers import average, check_grid, pixel_shuffle


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


def test_averages_are_means_of_the_shuffled_neighbours() -> None:
    x = features()
    folded = pixel_shuffle(x, (6, 6), 3).unflatten(2, (9, 5)).mean(2)
    torch.testing.assert_close(average(x, (6, 6), 2), folded)
    corner = x.unflatten(1, (6, 6))[:, :3, 3:].mean((1, 2))  # the quarter at the top right
    torch.testing.assert_close(average(x, (6, 6), 2)[:, 1], corner)


def test_grids_and_options_that_do_not_fit() -> None:
    for grid, token_grid, shuffle, key in (
        ((6, 6), 7, 1, "token_grid=7"), ((6, 6), 0, 4, "pixel_shuffle=4"), ((6, 6), 4, 3, "pixel_shuffle=3"),
        ((4, 9), 2, 1, "token_grid=2"), ((4, 9), 0, 2, "pixel_shuffle=2"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"model\.{key} .* {grid[0]} x {grid[1]} tokens"):
            check_grid(grid, token_grid, shuffle)
        check_grid(grid, 0, 1)
    check_grid((6, 6), 6, 2)
    options: list[dict[str, Any]] = [
        *({"feature_layer": layer} for layer in ("last", -2.5, True, [], [-2, "-5"], [-2, -5, -2])),
        {"token_grid": -1}, {"token_grid": 2, "keep_cls": True}, {"pixel_shuffle": 0},
        {"pixel_shuffle": 2, "keep_cls": True}, {"pixel_shuffle": 2, "token_grid": 3}, {"llm_dtype": "bfloat"},
        {"tower_dtype": "half"}, {"end": "stop"},
    ]  # fmt: skip
    for one in options:
        with pytest.raises(ConfigError, match=rf"^model\.{next(iter(one))}"):
            ModelConfig(**one).validate()


def test_a_list_of_layers_survives_yaml_and_overrides(tmp_path: Path) -> None:
    config = load_config(None, ["model.feature_layer=[-2,-3]", "model.pixel_shuffle=2"])
    assert config.model.layers == (-2, -3)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(None, ["model.feature_layer=-1"]).model.layers == (-1,)
