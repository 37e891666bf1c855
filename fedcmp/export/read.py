"""Reads a projector from a run, the original LLaVA's mm_projector.bin or a Llava folder of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fedcmp.errors import CheckpointError
from fedcmp.models.projector import KINDS, ProjectorConfig, param_shapes
from fedcmp.types import Params

FILES = (
    "projector.safetensors",
    "mm_projector.bin",
    *(f"model.safetensors{index}" for index in ("", ".index.json")),
    *(f"pytorch_model.bin{index}" for index in ("", ".index.json")),
    "adapter_model.safetensors",
    "adapter_model.bin",
)
"""The files of a folder in which a projector is looked for, in this order."""

_OURS = re.compile(r"(?:(?:model\.)?multi_modal_projector\.)?(norm|linear|linear_1|linear_2)\.(weight|bias)")
_LLAVA = re.compile(r"(?:.*\.)?mm_projector\.(0\.|2\.|)(weight|bias)")
_LAYERS = {"": "linear", "0.": "linear_1", "2.": "linear_2"}


def read_projector(path: Path) -> Params:
    """The projector in a file or folder, float32, under the names of the run folder.

    Args:
        path: a projector.safetensors, an mm_projector.bin, weights of a whole model, or a folder that holds one of
            them: a run, an output of the original LLaVA, a Llava of transformers. Only the projector's tensors are
            read, and of a pickle nothing but tensors.

    Raises:
        CheckpointError: nothing there, corrupted, no projector, or one of a form that fedcmp does not have.
    """
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), path)
    try:
        tensors, others = _tensors(file)
    except Exception as error:  # torch and safetensors have no common base
        raise CheckpointError(f"cannot read the projector {file}: {error}") from error
    names = sorted({*tensors, *others})
    if any("lora_" in key for key in names):
        raise CheckpointError(f"{file} is a LoRA, not a projector; merge it into its base model first")
    if not tensors:
        raise CheckpointError(f"{file}: expected names like mm_projector.0.weight, found {names[:3]}")
    if any("embed_tokens" in key for key in others) and not any(".layers." in key for key in others):
        raise CheckpointError(f"{file} holds trained token embeddings (mm_use_im_start_end); expected a projector only")
    params: Params = {}
    for key, value in tensors.items():
        name = our_name(key)
        if name is None or not value.is_floating_point():
            raise CheckpointError(f"{file}: {key}, {value.dtype}: expected `linear` or `mlp2x_gelu` in floating point")
        params[name] = value.to(torch.float32)
    kind = "linear" if {"linear.weight", "linear.bias"} & set(params) else "mlp2x_gelu"
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    ends = (shapes.get(f"{KINDS[kind][place]}.weight", ()) for place in (0, -1))
    (hidden, width), (out, _) = (shape if len(shape) == 2 else (0, 0) for shape in ends)
    norm = bool({"norm.weight", "norm.bias"} & set(params))
    wanted = param_shapes(width, out, ProjectorConfig(kind, hidden=hidden, layer_norm=norm))
    if shapes != wanted:
        raise CheckpointError(f"{file}: expected the shapes {wanted}, found {shapes}")
    for name, value in params.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{file}: {name} is not finite")
    params = {name: params[name] for name in wanted}
    return _as_applied(file, params) if any("multi_modal_projector." in key for key in tensors) else params


def our_name(key: str) -> str | None:
    """The run folder's name of a projector parameter; None: another model's part, or an unknown kind of projector.

    >>> our_name("model.mm_projector.2.bias"), our_name("multi_modal_projector.linear_1.weight")
    ('linear_2.bias', 'linear_1.weight')
    >>> our_name("model.mm_projector.4.weight")
    """
    if found := _OURS.fullmatch(key):
        return f"{found[1]}.{found[2]}"
    found = _LLAVA.fullmatch(key)
    return f"{_LAYERS[found[1]]}.{found[2]}" if found else None


def llava_name(name: str) -> str:
    """The original LLaVA's name of a projector parameter.

    >>> llava_name("linear_2.weight"), llava_name("linear.bias")
    ('model.mm_projector.2.weight', 'model.mm_projector.bias')
    """
    layer, _, leaf = name.rpartition(".")
    place = {ours: theirs for theirs, ours in _LAYERS.items()}[layer]
    return f"model.mm_projector.{place}{leaf}"


def _is_projector(key: str) -> bool:
    return our_name(key) is not None or "multi_modal_projector." in key or "mm_projector." in key


def _tensors(file: Path) -> tuple[dict[str, Tensor], set[str]]:
    """The projector's tensors in a file, or in the files that an index lists; and the names of all others."""
    tensors: dict[str, Tensor]
    if file.name.endswith(".index.json"):
        places = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        tensors = {}
        for part in sorted({place for key, place in places.items() if _is_projector(key)}):
            if Path(part).name != part or part.endswith(".index.json"):
                raise ValueError(f"expected a file beside it, got {part!r}")
            tensors |= _tensors(file.parent / part)[0]
        return tensors, set(places) - set(tensors)
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as weights:
            keys = set(weights.keys())
            tensors = {key: weights.get_tensor(key) for key in keys if _is_projector(key)}
            return tensors, keys - set(tensors)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("expected names and tensors")
    tensors = {key: value for key, value in content.items() if _is_projector(key)}
    return tensors, set(content) - set(tensors)


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
