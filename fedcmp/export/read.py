"""Reads a projector from a run, the original LLaVA's mm_projector.bin or a Llava folder of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedcmp.errors import CheckpointError
from fedcmp.models.projector import KINDS, kind_of
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
"""The files of a folder in which a projector is looked for, in this order."""

_OURS = re.compile(r"(norm|linear|linear_1|linear_2)\.(weight|bias)")
_HF = re.compile(r"(?:model\.)?multi_modal_projector\.(linear_1|linear_2)\.(weight|bias)")
_LLAVA = re.compile(r"(?:.*\.)?mm_projector\.(?:(0|2)\.)?(weight|bias)")
_LAYERS = {None: "linear", "0": "linear_1", "2": "linear_2"}
_MARKS = ("multi_modal_projector.", "mm_projector.")


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
        raise CheckpointError(f"{file} holds no projector; expected names like mm_projector.0.weight, found {some}")
    if any("embed_tokens" in key for key in others) and not any(".layers." in key for key in others):
        raise CheckpointError(f"{file} holds trained token embeddings (mm_use_im_start_end); expected a projector only")
    params: Params = {}
    for key, value in tensors.items():
        name = our_name(key)
        if name is None or not value.is_floating_point():
            raise CheckpointError(f"{file}: {key}, {value.dtype}: expected `linear` or `mlp2x_gelu` in floating point")
        params[name] = value.to(torch.float32)
    _check(file, params)
    if any("multi_modal_projector." in key for key in tensors):
        params = _as_applied(file, params)
    order = ("norm", *KINDS[kind_of(params)])
    names = [f"{layer}.{leaf}" for layer in order for leaf in ("weight", "bias")]
    return {name: params[name] for name in names if name in params}


def our_name(key: str) -> str | None:
    """The run folder's name of a projector parameter; None: another model's part, or an unknown kind of projector.

    >>> our_name("model.mm_projector.2.bias"), our_name("multi_modal_projector.linear_1.weight")
    ('linear_2.bias', 'linear_1.weight')
    >>> our_name("model.mm_projector.4.weight")
    """
    if _OURS.fullmatch(key):
        return key
    if found := _HF.fullmatch(key):
        return f"{found[1]}.{found[2]}"
    if found := _LLAVA.fullmatch(key):
        return f"{_LAYERS[found[1]]}.{found[2]}"
    return None


def llava_name(name: str) -> str:
    """The original LLaVA's name of a projector parameter.

    >>> llava_name("linear_2.weight"), llava_name("linear.bias")
    ('model.mm_projector.2.weight', 'model.mm_projector.bias')
    """
    layer, _, leaf = name.rpartition(".")
    place = {"linear": "", "linear_1": "0.", "linear_2": "2."}[layer]
    return f"model.mm_projector.{place}{leaf}"


def _is_projector(key: str) -> bool:
    """Whether a parameter belongs to a projector of any kind."""
    return our_name(key) is not None or any(mark in key for mark in _MARKS)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"cannot read the projector {path}: expected a file, or a folder with {FILES[0]} or the like")


def _tensors(file: Path) -> tuple[dict[str, Tensor], set[str]]:
    """The projector's tensors in a file, or in the files that an index lists; and the names of all others."""
    try:
        if file.name.endswith(".index.json"):
            return _indexed(file)
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                keys = set(weights.keys())
                tensors = {key: weights.get_tensor(key) for key in keys if _is_projector(key)}
                return tensors, keys - set(tensors)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise ValueError("expected names and tensors")
        tensors = {key: value for key, value in content.items() if _is_projector(key)}
        return tensors, set(content) - set(tensors)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot read the projector {file}: {error}") from error


def _indexed(file: Path) -> tuple[dict[str, Tensor], set[str]]:
    places = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    found: dict[str, Tensor] = {}
    for part in sorted({place for key, place in places.items() if _is_projector(key)}):
        if Path(part).name != part or part.endswith(".index.json"):
            raise ValueError(f"expected a file beside it, got {part!r}")
        found |= _tensors(file.parent / part)[0]
    return found, set(places) - set(found)


def _check(file: Path, params: Params) -> None:
    layers = KINDS["linear" if {"linear.weight", "linear.bias"} & set(params) else "mlp2x_gelu"]
    norm = ("norm",) if {"norm.weight", "norm.bias"} & set(params) else ()
    wanted = {f"{layer}.{leaf}" for layer in (*norm, *layers) for leaf in ("weight", "bias")}
    if wanted != set(params):
        raise CheckpointError(f"{file}: expected {', '.join(sorted(wanted))}, found {', '.join(sorted(params))}")
    width, fits = params[f"{layers[0]}.weight"].shape[-1:], True
    for layer in (*norm, *layers):
        weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
        fits = fits and weight.dim() == (1 if layer == "norm" else 2) and weight.shape[-1:] == width
        width = weight.shape[:1]
        fits = fits and bias.shape == width
    if not fits:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(params.items()))
        raise CheckpointError(f"{file}: the shapes do not fit one another: {shapes}")
    for name, value in params.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{file}: {name} is not finite")


def _as_applied(file: Path, params: Params) -> Params:
    """The projector by a Llava's config: between its layers is a GELU, or nothing, as in our export of `linear`."""
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
