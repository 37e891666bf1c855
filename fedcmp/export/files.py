"""The files of a Llava: weights by the names of llava-hf, and configurations that transformers 4 and 5 both read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcmp.models.projector import kind_of
from fedcmp.staging import check_space
from fedcmp.types import Params

Weights = dict[str, Tensor]

LOCAL = ("name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file", "backend")
"""Keys of a tokenizer's configuration for the machine that wrote it, or for transformers 5 alone."""


def tower_weights(tower: nn.Module) -> Weights:
    """All weights of a vision tower, including blocks behind the layer that is read."""
    import transformers

    state = tower.state_dict()
    # transformers 5 took a level out of these two, and still reads the old names
    nested = isinstance(tower, transformers.CLIPVisionModel | transformers.SiglipVisionModel)
    level = "vision_model." if nested and not any(key.startswith("vision_model.") for key in state) else ""
    return {f"vision_tower.{level}{key}": value for key, value in state.items()}


def projector_weights(params: Params) -> Weights:
    """A projector as the two layers that a Llava has.

    The single layer of ``linear`` becomes the first; the second is then the identity, with no function between them:
    x I = x is exact in floating point.
    """
    layers = params
    if kind_of(params) == "linear":
        width = len(params["linear.weight"])
        layers = {
            "linear_1.weight": params["linear.weight"],
            "linear_1.bias": params["linear.bias"],
            "linear_2.weight": torch.eye(width),
            "linear_2.bias": torch.zeros(width),
        }
    return {f"multi_modal_projector.{name}": value for name, value in layers.items()}


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
    check_space(folder, sum(value.nbytes for value in cast.values()))
    save_torch_state_dict(cast, folder, max_shard_size="5GB", metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        file.chmod(folder.stat().st_mode & 0o666)  # the library's files are for their owner alone


def model_config(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model and its parts, without folders of this machine.

    transformers 5 reads rotary embeddings from ``rope_parameters``; transformers 4 reads ``rope_theta`` and
    ``rope_scaling`` and takes its default without a word where they are missing. Both are written.

    >>> model_config({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})["rope_theta"]
    5.0
    """
    result: dict[str, Any] = {}
    for key, value in content.items():
        if key == "_name_or_path" and (not value or Path(value).exists()):
            continue
        result[key] = model_config(value) if key.endswith("_config") and isinstance(value, dict) else value
    rope = result.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        result |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        result["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else dict(rope)
    return result


def tokenizer_config(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a tokenizer that is complete in its tokenizer.json, with the class that reads nothing else.

    The classes of model families rebuild parts of it, each version in its own way. transformers 4 knows neither
    ``TokenizersBackend`` nor a list of ``extra_special_tokens``, and by default gives ``token_type_ids``.

    >>> tokenizer_config({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]})["tokenizer_class"]
    'PreTrainedTokenizerFast'
    """
    dropped = (*LOCAL, "add_bos_token", "add_eos_token", "extra_special_tokens")
    result = {key: value for key, value in content.items() if key not in dropped}
    result |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    result["model_input_names"] = ["input_ids", "attention_mask"]
    if extra := content.get("extra_special_tokens"):
        result["additional_special_tokens" if isinstance(extra, list) else "extra_special_tokens"] = extra
    return result


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a configuration file."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
