"""The configuration files of transformers 5, written so that transformers 4 reads the same out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LOCAL = ("name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file", "backend")
"""Keys of a tokenizer's configuration that speak of the machine that wrote it, or of transformers 5 alone."""


def model_config(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model with its parts.

    Folders of this machine are left out. Rotary embeddings are told twice: transformers 5 reads ``rope_parameters``,
    transformers 4 reads ``rope_theta`` and ``rope_scaling`` and would take its default, unsaid, where they are missing.

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
    """The configuration of a tokenizer that is whole in its tokenizer.json, as the class that reads nothing else.

    The classes of model families rebuild parts of it, each version in its own way; ``TokenizersBackend`` is unknown to
    transformers 4, and so is a list of ``extra_special_tokens``; its own default gives ``token_type_ids``, too, which
    no Llava takes.

    >>> tokenizer_config({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]})["tokenizer_class"]
    'PreTrainedTokenizerFast'
    """
    dropped = (*LOCAL, "add_bos_token", "add_eos_token", "extra_special_tokens")
    result = {key: value for key, value in content.items() if key not in dropped}
    result |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    result["model_input_names"] = ["input_ids", "attention_mask"]
    extra = content.get("extra_special_tokens")
    if isinstance(extra, list):
        result["additional_special_tokens"] = extra
    elif extra:
        result["extra_special_tokens"] = extra
    return result
