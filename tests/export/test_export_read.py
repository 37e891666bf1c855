"""What the original LLaVA reads of an export, its projectors and others read as ours, and what is none is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_models, make_params, params_of
from torch import nn

from fedcmp.errors import CheckpointError, ConfigError
from fedcmp.export.hf import write_hf
from fedcmp.export.llava import write_llava
from fedcmp.export.read import read_projector
from fedcmp.federation.checkpoint import save_projector
from fedcmp.models.backbones import DEMO, ModelConfig
from fedcmp.models.projector import project
from fedcmp.types import Params


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
def test_the_original_reads_the_same_projector_and_it_comes_back(kind: str, tmp_path: Path) -> None:
    params, hf, llava = make_params(96, 96, kind=kind), tmp_path / "hf", tmp_path / "llava"
    for folder in (hf, llava):
        folder.mkdir()
    write_hf(hf, ModelConfig(), params, "float32", 8)
    write_llava(llava, ModelConfig(), params, "float32")
    features = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(as_the_original(llava)(features), project(params, features))
    settings = json.loads((llava / "config.json").read_text())
    assert settings["mm_vision_tower"] == str(DEMO / "tower"), "the original finds it by its path"
    assert settings["mm_vision_select_feature"] == "patch"
    for path in (hf, hf / "model.safetensors", llava, llava / "mm_projector.bin"):
        assert same(read_projector(path), params)
    if kind == "linear":
        settings = json.loads((hf / "config.json").read_text())
        (hf / "config.json").write_text(json.dumps({**settings, "projector_hidden_act": "silu"}))
        with pytest.raises(CheckpointError, match="projector_hidden_act is silu"):
            read_projector(hf)
        (hf / "config.json").write_text(json.dumps(settings))
        weights = load_file(hf / "model.safetensors")
        weights["multi_modal_projector.linear_2.bias"][0] = 1
        save_file(weights, hf / "model.safetensors")
        with pytest.raises(CheckpointError, match="projector_hidden_act is linear"):
            read_projector(hf)


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
def test_what_the_original_lacks_is_refused(tower, llm, more: dict, shape: dict, key: str, tmp_path: Path) -> None:
    config = make_models(tmp_path, tower, llm, **more)
    with pytest.raises(ConfigError, match=rf"^model\.{key}"):
        write_llava(tmp_path, config, params_of(config, **shape), "float32")


def same(one: Params, other: Params) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_and_what_trainers_leave_are_read_as_they_were_written(tmp_path: Path) -> None:
    for place, shape in enumerate(({}, {"kind": "linear"}, {"layer_norm": True, "hidden": 7})):
        params = make_params(5, 9, **shape)
        (folder := tmp_path / str(place)).mkdir()
        save_projector(folder / "projector.safetensors", params)
        assert same(read_projector(folder), params)
    params, places = make_params(4, 6), {"linear_1": "0", "linear_2": "2"}
    for prefix in ("", "model.", "base_model.model.model."):
        names = {name: f"{prefix}mm_projector.{places[name[:8]]}.{name[9:]}" for name in params}
        torch.save({names[name]: value for name, value in params.items()}, tmp_path / "mm_projector.bin")
        assert same(read_projector(tmp_path), params)


def test_a_model_in_many_files_is_read_by_its_index(tmp_path: Path) -> None:
    params = {name: value.bfloat16() for name, value in make_params(4, 6).items()}
    parts: dict[str, Params] = {"a.safetensors": {"model.layers.0.w": torch.ones(1)}, "b.safetensors": {}}
    for place, (name, value) in enumerate(params.items()):
        parts[f"{'ab'[place % 2]}.safetensors"][f"model.multi_modal_projector.{name}"] = value
    for name, content in parts.items():
        save_file(content, tmp_path / name)
    index = {key: name for name, content in parts.items() for key in content} | {"x.layers.1": "missing.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(read_projector(tmp_path), {name: value.float() for name, value in params.items()})


P = "model.mm_projector."
WHOLE = {f"{P}0.weight": torch.ones(3, 2), f"{P}0.bias": torch.ones(3), f"{P}2.weight": torch.ones(3, 3)}
BIAS = {f"{P}2.bias": torch.ones(3)}
NORM = {"norm.weight": torch.ones(2), "norm.bias": torch.ones(3)}


@pytest.mark.parametrize(("content", "named"), [
    (WHOLE, r"linear_2\.bias"),
    ({**WHOLE, f"{P}2.bias": torch.ones(4)}, r"linear_2\.bias': \(4,\)"),
    ({**WHOLE, **BIAS, f"{P}2.weight": torch.ones(3, 4)}, r"linear_2\.weight': \(3, 4\)"),
    ({**WHOLE, **BIAS, f"{P}0.bias": torch.ones(3, 1)}, r"linear_1\.bias': \(3, 1\)"),
    ({**WHOLE, **BIAS, **NORM}, r"norm\.bias': \(3,\)"),
    ({**BIAS, f"{P}0.weight": torch.ones(())}, "linear_1"),
    ({**WHOLE, f"{P}2.bias": torch.tensor([1, torch.nan, 1])}, r"linear_2\.bias is not finite"),
    ({**WHOLE, **BIAS, f"{P}4.weight": torch.ones(3, 3)}, r"mm_projector\.4\.weight"),
    ({**WHOLE, **BIAS, f"{P}weight": torch.ones(3, 2)}, r"linear\.bias"),
    ({**WHOLE, f"{P}2.bias": torch.ones(3, dtype=torch.uint8)}, r"2\.bias, torch\.uint8"),
    ({"base_model.mm_projector.0.lora_B.default.weight": torch.ones(2, 2)}, "LoRA"),
    ({"model.embed_tokens.weight": torch.ones(2, 2)}, r"model\.embed_tokens\.weight"),
    ({**WHOLE, **BIAS, "model.embed_tokens.weight": torch.ones(2, 2)}, "mm_use_im_start_end"),
])  # fmt: skip
def test_what_is_no_projector_is_refused(content: Params, named: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=rf"mm_projector\.bin.*{named}"):
        read_projector(tmp_path / "mm_projector.bin")


class Harm:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_a_path_without_a_projector_and_a_pickle_that_holds_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=f"cannot read the projector {path}"):
            read_projector(path)
    for content in ({"mm_projector.weight": Harm()}, [torch.ones(1)]):
        torch.save(content, tmp_path / "mm_projector.bin")
        with pytest.raises(CheckpointError, match=r"cannot read the projector .*mm_projector\.bin"):
            read_projector(tmp_path)
    assert not (tmp_path / "harmed").exists()
