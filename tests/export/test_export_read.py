"""Projectors of others are read as ours, and what is no projector is refused."""

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
def test_what_was_exported_comes_back(kind: str, tmp_path: Path) -> None:
    params = make_params(96, 96, kind=kind)
    for name in ("hf", "llava"):
        (tmp_path / name).mkdir()
    write_hf(tmp_path / "hf", ModelConfig(), params, "float32", 8)
    write_llava(tmp_path / "llava", ModelConfig(), params, "float32")
    for path in ("hf", "hf/model.safetensors", "llava", "llava/mm_projector.bin"):
        assert same(read_projector(tmp_path / path), params)
    if kind == "mlp2x_gelu":
        return
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**settings, "projector_hidden_act": "silu"}))
    with pytest.raises(CheckpointError, match="projector_hidden_act is silu"):
        read_projector(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["multi_modal_projector.linear_2.bias"][0] = 1
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match="projector_hidden_act is linear"):
        read_projector(tmp_path / "hf")


@pytest.mark.parametrize("shape", [{}, {"kind": "linear"}, {"layer_norm": True, "hidden": 7}])
def test_a_run_is_read_as_it_was_written(shape: dict, tmp_path: Path) -> None:
    params = make_params(5, 9, **shape)
    save_projector(tmp_path / "projector.safetensors", params)
    assert same(read_projector(tmp_path), params)
    assert load_projector(tmp_path / "projector.safetensors").keys() == params.keys()


def test_a_model_in_many_files_is_read_by_its_index(tmp_path: Path) -> None:
    params = make_params(4, 6)
    weights = {f"model.multi_modal_projector.{name}": value.bfloat16() for name, value in params.items()}
    parts: dict[str, Params] = {"a.safetensors": {"model.layers.0.w": torch.ones(1)}, "b.safetensors": {}}
    for place, (key, value) in zip(("a", "b", "a", "b"), weights.items(), strict=True):
        parts[f"{place}.safetensors"][key] = value
    for name, content in parts.items():
        save_file(content, tmp_path / name)
    index = {key: name for name, content in parts.items() for key in content} | {"x.layers.1": "missing.safetensors"}
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    assert same(read_projector(tmp_path), {name: value.bfloat16().float() for name, value in params.items()})
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"mm_projector.weight": "../b.safetensors"}}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"index\.json"):
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
NORM = {"norm.weight": torch.ones(2), "norm.bias": torch.ones(3)}


@pytest.mark.parametrize(("content", "named"), [
    (WHOLE, r"linear_2\.bias"),
    ({**WHOLE, f"{P}2.bias": torch.ones(4)}, r"linear_2\.bias \[4\]"),
    ({**WHOLE, **BIAS, f"{P}2.weight": torch.ones(3, 4)}, r"linear_2\.weight \[3, 4\]"),
    ({**WHOLE, **BIAS, f"{P}0.bias": torch.ones(3, 1)}, r"linear_1\.bias \[3, 1\]"),
    ({**WHOLE, **BIAS, **NORM}, r"norm\.bias \[3\]"),
    ({**WHOLE, f"{P}2.bias": torch.tensor([1, torch.nan, 1])}, r"linear_2\.bias is not finite"),
    ({**WHOLE, **BIAS, f"{P}4.weight": torch.ones(3, 3)}, r"mm_projector\.4\.weight"),
    ({**WHOLE, **BIAS, f"{P}weight": torch.ones(3, 2)}, r"linear\.bias"),
    ({**WHOLE, f"{P}2.bias": torch.ones(3, dtype=torch.uint8)}, r"2\.bias, torch\.uint8"),
    ({"base_model.q_proj.lora_A.weight": torch.ones(2, 2)}, "LoRA"),
    ({"base_model.mm_projector.0.lora_B.default.weight": torch.ones(2, 2)}, "LoRA"),
    ({"model.embed_tokens.weight": torch.ones(2, 2)}, r"no projector.*model\.embed_tokens\.weight"),
    ({**WHOLE, **BIAS, "model.embed_tokens.weight": torch.ones(2, 2)}, "mm_use_im_start_end"),
    ({}, "no projector"),
])  # fmt: skip
def test_what_is_no_projector_is_refused(content: Params, named: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=rf"mm_projector\.bin.*{named}"):
        read_projector(tmp_path / "mm_projector.bin")


class Harm:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_a_pickle_that_holds_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ({"mm_projector.weight": Harm()}, [torch.ones(1)]):
        torch.save(content, tmp_path / "mm_projector.bin")
        with pytest.raises(CheckpointError, match=r"cannot read the projector .*mm_projector\.bin"):
            read_projector(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_path_without_a_projector(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=f"cannot read the projector {path}"):
            read_projector(path)
    (tmp_path / "adapter_model.bin").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"cannot read the projector .*adapter_model\.bin"):
        read_projector(tmp_path)
