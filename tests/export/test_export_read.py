"""Projectors of others come in as ours, and what is none says so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_params

from fedcmp.errors import CheckpointError
from fedcmp.export.hf import write_hf
from fedcmp.export.llava import write_llava
from fedcmp.export.read import read_projector
from fedcmp.federation.checkpoint import load_projector, save_projector
from fedcmp.models.backbones import ModelConfig
from fedcmp.types import Params


def same(one: Params, other: Params) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "linear"])
@pytest.mark.parametrize("to", ["hf", "llava"])
def test_what_was_exported_comes_back(kind: str, to: str, tmp_path: Path) -> None:
    params = make_params(96, 96, kind=kind)
    if to == "hf":
        write_hf(tmp_path, ModelConfig(), params, "float32", 8)
        file = tmp_path / "model.safetensors"
    else:
        write_llava(tmp_path, ModelConfig(), params, "float32")
        file = tmp_path / "mm_projector.bin"
    assert same(read_projector(tmp_path), params)
    assert same(read_projector(file), params)


@pytest.mark.parametrize("shape", [{}, {"kind": "linear"}, {"layer_norm": True, "hidden": 7}])
def test_a_run_is_read_as_it_was_written(shape: dict, tmp_path: Path) -> None:
    params = make_params(5, 9, **shape)
    save_projector(tmp_path / "projector.safetensors", params)
    assert same(read_projector(tmp_path), params)
    assert load_projector(tmp_path / "projector.safetensors").keys() == params.keys()


def test_a_model_in_many_files_is_read_by_its_index(tmp_path: Path) -> None:
    params = make_params(4, 6)
    weights = {f"model.multi_modal_projector.{name}": value.bfloat16() for name, value in params.items()}
    others = {"model.language_model.layers.0.w": torch.ones(1)}
    parts: dict[str, Params] = {"a.safetensors": {**others}, "b.safetensors": {}}
    for place, (key, value) in zip(("a", "b", "a", "b"), weights.items(), strict=True):
        parts[f"{place}.safetensors"][key] = value
    for name, content in parts.items():
        save_file(content, tmp_path / name)
    index = {key: name for name, content in parts.items() for key in content} | {"x.layers.1": "missing.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    wanted = {name: value.bfloat16().float() for name, value in params.items()}
    assert same(read_projector(tmp_path), wanted)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"cannot read .*index\.json.* expected a weight_map"):
        read_projector(tmp_path)


def test_names_as_trainers_leave_them(tmp_path: Path) -> None:
    params = make_params(4, 6)
    places = {"linear_1": "0", "linear_2": "2"}
    for prefix in ("", "model.", "base_model.model.model."):
        content = {
            f"{prefix}mm_projector.{places[name.split('.')[0]]}.{name.split('.')[1]}": value
            for name, value in params.items()
        }
        torch.save(content, tmp_path / "mm_projector.bin")
        assert same(read_projector(tmp_path), params)


P = "model.mm_projector."
WHOLE = {f"{P}0.weight": torch.ones(3, 2), f"{P}0.bias": torch.ones(3), f"{P}2.weight": torch.ones(3, 3)}
BIAS = {f"{P}2.bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE, r"lacks linear_2\.bias"),
        ({**WHOLE, f"{P}2.bias": torch.ones(4)}, r"do not follow one another: .*linear_2\.bias \[4\]"),
        ({**WHOLE, **BIAS, f"{P}2.weight": torch.ones(3, 4)}, r"do not follow .*linear_2\.weight \[3, 4\]"),
        ({**WHOLE, f"{P}2.bias": torch.tensor([1, torch.nan, 1])}, r"linear_2\.bias is not finite"),
        ({**WHOLE, **BIAS, f"{P}4.weight": torch.ones(3, 3)}, r"mm_projector\.4\.weight is a part of another kind"),
        ({**WHOLE, **BIAS, f"{P}weight": torch.ones(3, 2)}, r"lacks linear\.bias"),
        ({**WHOLE, f"{P}2.bias": torch.ones(3, dtype=torch.uint8)}, r"2\.bias is of type torch\.uint8"),
        ({"base_model.q_proj.lora_A.weight": torch.ones(2, 2)}, r"is a LoRA, not a projector; merge it"),
        ({"base_model.mm_projector.0.lora_B.default.weight": torch.ones(2, 2)}, r"is a LoRA"),
        ({"model.embed_tokens.weight": torch.ones(2, 2)}, r"holds no projector \(but model\.embed_tokens\.weight\)"),
        ({**WHOLE, **BIAS, "model.embed_tokens.weight": torch.ones(2, 2)}, r"mm_use_im_start_end"),
        ({}, r"holds no projector \(but nothing\)"),
    ],
)
def test_what_is_no_projector_says_so(content: Params, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=message):
        read_projector(tmp_path / "mm_projector.bin")


def test_the_widths_of_a_norm_are_checked(tmp_path: Path) -> None:
    params = {**make_params(5, 9, layer_norm=True), "norm.bias": torch.zeros(6)}
    save_file(params, tmp_path / "projector.safetensors")
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \[5\], not the width of the first layer"):
        read_projector(tmp_path)


class Harm:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_a_pickle_that_holds_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mm_projector.weight": Harm()}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"cannot read the projector .*mm_projector\.bin"):
        read_projector(tmp_path)
    assert not (tmp_path / "harmed").exists()
    torch.save([torch.ones(1)], tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="expected names and tensors"):
        read_projector(tmp_path)


def test_a_path_without_a_projector(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read the projector .*nowhere: there is no such file"):
        read_projector(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no projector; expected one of projector\.safetensors, mm_proj"):
        read_projector(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"cannot read the projector .*adapter_model\.bin"):
        read_projector(tmp_path)


def test_another_function_between_the_layers_is_refused(tmp_path: Path) -> None:
    params = make_params(96, 96, kind="linear")
    write_hf(tmp_path, ModelConfig(), params, "float32", 8)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "projector_hidden_act": "silu"}))
    with pytest.raises(CheckpointError, match="projector_hidden_act is silu; fedcmp's projectors have gelu"):
        read_projector(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = load_file(tmp_path / "model.safetensors")
    weights["multi_modal_projector.linear_2.bias"][0] = 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="projector_hidden_act is linear"):
        read_projector(tmp_path)
