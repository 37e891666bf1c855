"""Reads a projector from a run, the original LLaVA's mm_projector.bin or a Llava folder of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedcmp.errors import CheckpointError
from fedcmp.export.names import is_projector, our_name
from fedcmp.types import Params

FILES = (
    "projector.safetensors",
    "mm_projector.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
"""What a folder may hold, in the order in which it is looked for."""

ORDER = ("norm", "linear", "linear_1", "linear_2")


def read_projector(path: Path) -> Params:
    """The projector in a file or folder, float32, under the names of the run folder.

    Args:
        path: a projector.safetensors, an mm_projector.bin, weights of a whole model, or a folder that holds one of
            them: a run, an output of the original LLaVA, a Llava of transformers. Only the projector's tensors are
            read, and of a pickle nothing but tensors.

    Raises:
        CheckpointError: nothing there, corrupted, no projector, or one of a form that fedcmp does not have.
    """
    file = _file(path)
    tensors, others = _tensors(file)
    if any("lora_" in key for key in (*tensors, *others)):
        raise CheckpointError(f"{file} is a LoRA, not a projector; merge it into its base model first")
    if not tensors:
        some = ", ".join(sorted(others)[:3]) or "nothing"
        raise CheckpointError(
            f"{file} holds no projector (but {some}); expected linear_1.weight, model.mm_projector.0.weight, "
            "multi_modal_projector.linear_1.weight or their like"
        )
    if any("embed_tokens" in key for key in others) and not any(".layers." in key for key in others):
        raise CheckpointError(
            f"{file} holds trained token embeddings beside the projector (mm_use_im_start_end), which it would lose; "
            "expected a projector alone"
        )
    params: Params = {}
    for key, value in tensors.items():
        name = our_name(key)
        if name is None or not value.is_floating_point():
            kind = f"of type {value.dtype}" if name else "a part of another kind of projector"
            raise CheckpointError(f"{file}: {key} is {kind}; fedcmp has `linear` and `mlp2x_gelu` in floating point")
        params[name] = value.to(torch.float32)
    _check(file, params)
    if any("multi_modal_projector." in key for key in tensors):
        params = _as_applied(file, params)
    return {f"{layer}.{leaf}": params[f"{layer}.{leaf}"] for layer in ORDER for leaf in ("weight", "bias")
            if f"{layer}.{leaf}" in params}  # fmt: skip


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"cannot read the projector {path}: there is no such file or folder")
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"the folder {path} holds no projector; expected one of {', '.join(FILES[:4])}")


def _tensors(file: Path) -> tuple[dict[str, Tensor], set[str]]:
    """The projector's tensors in a file, or in the files that an index lists; and the names of all others."""
    if file.name.endswith(".index.json"):
        places = _index(file)
        found: dict[str, Tensor] = {}
        for part in sorted({place for key, place in places.items() if is_projector(key)}):
            found |= _tensors(file.parent / part)[0]
        return found, {key for key in places if not is_projector(key)}
    reader = _safetensors if file.suffix == ".safetensors" else _pickle
    try:
        return reader(file, is_projector)
    except Exception as error:
        raise CheckpointError(f"cannot read the projector {file}: {error}") from error


def _index(file: Path) -> dict[str, str]:
    try:
        places = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; expected a weight_map") from error
    if not isinstance(places, dict):
        raise CheckpointError(f"cannot read {file}: its weight_map is no object")
    for place in places.values():
        beside = isinstance(place, str) and Path(place).name == place and place not in ("", "..")
        if not beside or place.endswith(".index.json"):
            raise CheckpointError(f"cannot read {file}: expected files beside it, got {place!r}")
    return places


def _safetensors(file: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], set[str]]:
    with safe_open(file, "pt") as content:
        keys = set(content.keys())
        return {key: content.get_tensor(key) for key in sorted(keys) if wanted(key)}, {k for k in keys if not wanted(k)}


def _pickle(file: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], set[str]]:
    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("expected names and tensors")
    return {key: content[key] for key in content if wanted(key)}, {key for key in content if not wanted(key)}


def _check(file: Path, params: Params) -> None:
    layers = ("linear",) if "linear.weight" in params or "linear.bias" in params else ("linear_1", "linear_2")
    wanted = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    wanted |= {"norm.weight", "norm.bias"} if {"norm.weight", "norm.bias"} & set(params) else set()
    for problem, names in (("lacks", wanted - set(params)), ("holds too much:", set(params) - wanted)):
        if names:
            raise CheckpointError(f"{file}: the projector {problem} {', '.join(sorted(names))}")
    width = None
    for layer in layers:
        weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
        if weight.dim() != 2 or bias.shape != weight.shape[:1] or width not in (None, weight.shape[1]):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(params.items()))
            raise CheckpointError(f"{file}: the shapes do not follow one another: {shapes}")
        width = weight.shape[0]
    scale = params.get("norm.weight")
    if scale is not None and not scale.shape == params["norm.bias"].shape == params[f"{layers[0]}.weight"].shape[1:]:
        raise CheckpointError(f"{file}: norm.weight has shape {list(scale.shape)}, not the width of the first layer")
    for name, value in params.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{file}: {name} is not finite")


def _as_applied(file: Path, params: Params) -> Params:
    """A Llava's config says what stands between the two layers: a GELU, or nothing, as in our export of `linear`."""
    place = file.parent / "config.json"
    try:
        between = json.loads(place.read_text(encoding="utf-8")).get("projector_hidden_act", "gelu")
    except FileNotFoundError:
        between = "gelu"
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {place}: {error}") from error
    if between == "gelu":
        return params
    last = params["linear_2.weight"]
    if between == "linear" and torch.equal(last, torch.eye(*last.shape)) and not params["linear_2.bias"].any():
        return {"linear.weight": params["linear_1.weight"], "linear.bias": params["linear_1.bias"]}
    raise CheckpointError(f"{place}: projector_hidden_act is {between}; fedcmp's projectors have gelu")
