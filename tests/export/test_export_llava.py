"""What the original LLaVA reads: the names, the config, and the same projector when read the original's way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_llm, make_params, make_tower
from torch import nn

from fedcmp.errors import ConfigError, ExportError
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
    module.load_state_dict({key.split("mm_projector.")[1]: value for key, value in weights.items()})
    return module


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "linear"])
def test_the_original_reads_the_same_projector(kind: str, tmp_path: Path) -> None:
    params = make_params(96, 96, kind=kind)
    write_llava(tmp_path, ModelConfig(), params, "float32")
    features = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(as_the_original(tmp_path)(features), project(params, features))
    keys = {"model.mm_projector.weight", "model.mm_projector.bias"}
    if kind == "mlp2x_gelu":
        keys = {f"model.mm_projector.{place}.{leaf}" for place in (0, 2) for leaf in ("weight", "bias")}
    assert set(torch.load(tmp_path / "mm_projector.bin", weights_only=True)) == keys


def test_the_config_says_which_tower_and_what_is_read_of_it(tmp_path: Path) -> None:
    tower, llm = make_tower(tmp_path / "tower", "clip"), make_llm(tmp_path / "llm", "llama")
    config = ModelConfig(tower=tower, llm=llm, keep_cls=True, feature_layer=-1)
    write_llava(tmp_path, config, make_params(16, 32), "bfloat16")
    settings = json.loads((tmp_path / "config.json").read_text())
    wanted = {
        "model_type": "llava_llama",
        "torch_dtype": "bfloat16",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 16,
        "hidden_size": 32,
        "mm_vision_tower": tower,
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "cls_patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": True,
        "rope_theta": 777.0,
        "vocab_size": 366,
    }
    assert {key: settings.get(key) for key in wanted} == wanted
    weights = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    write_llava(tmp_path, ModelConfig(), make_params(96, 96), "float32")
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["mm_vision_tower"] == str(DEMO / "tower"), "the original finds it by its path"
    assert settings["mm_vision_select_feature"] == "patch"


def test_towers_and_llms_of_other_families_are_refused(tmp_path: Path) -> None:
    siglip = ModelConfig(tower=make_tower(tmp_path / "tower", "siglip"))
    with pytest.raises(
        ConfigError, match=r"model\.tower=.*: the original LLaVA reads CLIP towers only, not siglip_vis"
    ):
        write_llava(tmp_path, siglip, make_params(16, 96), "float32")
    qwen = ModelConfig(llm=make_llm(tmp_path / "llm", "qwen2"))
    with pytest.raises(ConfigError, match=r"model\.llm=.*: the original LLaVA .* not on qwen2; --to hf holds"):
        write_llava(tmp_path, qwen, make_params(96, 32), "float32")
    with pytest.raises(ConfigError, match=r"model\.projector\.hidden=24"):
        write_llava(tmp_path, ModelConfig(), make_params(96, 96, hidden=24), "float32")


def test_a_file_that_reads_back_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, path: save({k: v + 1 for k, v in content.items()}, path))
    with pytest.raises(ExportError, match=r"mm_projector\.bin reads back differently"):
        write_llava(tmp_path, ModelConfig(), make_params(96, 96), "float32")
