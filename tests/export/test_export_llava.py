"""What the original LLaVA reads: the names, the config, and the same projector when read the original's way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_models, params_of
from torch import nn

from fedcmp.errors import ConfigError
from fedcmp.export.llava import write_llava
from fedcmp.models.backbones import DEMO, ModelConfig
from fedcmp.models.projector import project


def as_the_original(folder: Path) -> nn.Module:
    """The original's projector, made from config.json and filled from mm_projector.bin by its own method for names."""
    settings = json.loads((folder / "config.json").read_text())
    first = nn.Linear(settings["mm_hidden_size"], settings["hidden_size"])
    module: nn.Module = first
    if settings["mm_projector_type"] == "mlp2x_gelu":
        module = nn.Sequential(first, nn.GELU(), nn.Linear(settings["hidden_size"], settings["hidden_size"]))
    weights: dict[str, Any] = torch.load(folder / "mm_projector.bin", weights_only=True)
    assert all(key.startswith("model.mm_projector.") for key in weights)
    module.load_state_dict({key.split("mm_projector.")[1]: value for key, value in weights.items()})
    return module


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "linear"])
def test_the_original_reads_the_same_projector(kind: str, tmp_path: Path) -> None:
    params = params_of(ModelConfig(), kind=kind)
    write_llava(tmp_path, ModelConfig(), params, "float32")
    features = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(as_the_original(tmp_path)(features), project(params, features))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["mm_vision_tower"] == str(DEMO / "tower"), "the original finds it by its path"
    assert settings["mm_vision_select_feature"] == "patch"


def test_the_config_says_which_tower_and_what_is_read_of_it(tmp_path: Path) -> None:
    config = make_models(tmp_path, "clip", "llama", keep_cls=True, feature_layer=-1)
    write_llava(tmp_path, config, params_of(config), "bfloat16")
    settings = json.loads((tmp_path / "config.json").read_text())
    wanted = {
        "model_type": "llava_llama", "torch_dtype": "bfloat16", "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 16, "hidden_size": 32, "mm_vision_tower": config.tower, "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "cls_patch", "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "use_mm_proj": True, "tune_mm_mlp_adapter": True, "rope_theta": 777.0,
    }  # fmt: skip
    assert {key: settings.get(key) for key in wanted} == wanted
    weights = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("tower", "llm", "more", "shape", "key"), [
    ("siglip", "demo", {}, {}, "tower="),
    ("demo", "qwen2", {}, {}, "llm="),
    ("demo", "demo", {}, {"hidden": 24}, "projector.hidden=24"),
    ("demo", "demo", {"feature_layer": [-2, -3]}, {}, "feature_layer="),
])  # fmt: skip
def test_what_the_original_cannot_hold_is_refused(
    tower: str, llm: str, more: dict, shape: dict, key: str, tmp_path: Path
) -> None:
    config = make_models(tmp_path, tower, llm, **more)
    with pytest.raises(ConfigError, match=rf"^model\.{key}"):
        write_llava(tmp_path, config, params_of(config, **shape), "float32")
