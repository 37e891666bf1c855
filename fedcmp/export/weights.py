"""The weights of a Llava under the names that all its readers know (llava-hf's), with a row for the image token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcmp.staging import check_space
from fedcmp.types import Params

Weights = dict[str, Tensor]


def tower_weights(tower: nn.Module) -> Weights:
    """All weights of a vision tower, also of blocks behind the layer that is read."""
    import transformers

    state = tower.state_dict()
    # transformers 5 took a level out of these two, and still reads the old names
    nested = isinstance(tower, transformers.CLIPVisionModel | transformers.SiglipVisionModel)
    level = "vision_model." if nested and not any(key.startswith("vision_model.") for key in state) else ""
    return {f"vision_tower.{level}{key}": value for key, value in state.items()}


def projector_weights(params: Params) -> Weights:
    """A projector as the two layers that a Llava has.

    The single layer of ``linear`` becomes the first; the second is then the identity, with nothing between them
    (``activation``): x I = x holds exactly in floating point.
    """
    if "linear.weight" not in params:
        layers = params
    else:
        width = len(params["linear.weight"])
        layers = {
            "linear_1.weight": params["linear.weight"],
            "linear_1.bias": params["linear.bias"],
            "linear_2.weight": torch.eye(width),
            "linear_2.bias": torch.zeros(width),
        }
    return {f"multi_modal_projector.{name}": value for name, value in layers.items()}


def activation(params: Params) -> str:
    """What stands between the two layers, as transformers calls it; ``linear`` is nothing."""
    return "linear" if "linear.weight" in params else "gelu"


def llm_weights(model: Any, rows: int) -> Weights:
    """All weights of a causal LM, its vocabulary grown to ``rows``; logits of tokens that it had do not change.

    A new row is the mean of all others: its logit is the mean of theirs, so it is never the largest, and its
    probability is below 1/V (the mean of logarithms is at most the logarithm of the mean).
    """
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = {}
    for key, value in model.base_model.state_dict().items():
        same = value.data_ptr() == table.data_ptr() and value.shape == table.shape
        weights[f"language_model.model.{key}"] = _grow(value, rows) if same else value
    if head is not table:
        weights["language_model.lm_head.weight"] = _grow(head.detach(), rows)
    return weights


def _grow(weight: Tensor, rows: int) -> Tensor:
    if rows <= len(weight):
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def save_weights(folder: Path, weights: Weights, dtype: torch.dtype) -> None:
    """Writes safetensors, in several files with an index where one would be larger than 5 GB.

    Raises:
        RunFolderError: the disk has no room.
    """
    from huggingface_hub import save_torch_state_dict

    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    check_space(folder, sum(value.numel() * value.element_size() for value in cast.values()))
    save_torch_state_dict(cast, folder, max_shard_size="5GB", metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        file.chmod(folder.stat().st_mode & 0o666)  # the library's files are for their owner alone
