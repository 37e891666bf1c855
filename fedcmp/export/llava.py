"""A run's projector as the original LLaVA leaves it after its first stage: mm_projector.bin and config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fedcmp.errors import ConfigError, ExportError
from fedcmp.export.limits import check_projector
from fedcmp.export.names import llava_name
from fedcmp.export.read import read_projector
from fedcmp.export.spelling import model_config
from fedcmp.models.backbones import DTYPES, ModelConfig, resolve
from fedcmp.types import Params

TOWERS = ("clip", "clip_vision_model")
"""What the original's ``CLIPVisionTower`` reads."""


def write_llava(folder: Path, config: ModelConfig, params: Params, dtype: str) -> None:
    """Writes the two files. No weight of tower or LLM is read: the original takes both from where its config says.

    Keys and names are those of https://github.com/haotian-liu/LLaVA (``llava/model/llava_arch.py``,
    ``multimodal_projector/builder.py``, ``safe_save_model_for_hf_trainer`` of ``train/train.py``).

    Args:
        folder: an empty folder.
        config: the frozen models and what is read of them.
        params: the projector.
        dtype: ``float32`` or ``bfloat16``; the original computes in float16 or bfloat16 in any case.

    Raises:
        ConfigError: the original cannot hold a part; the message names the setting.
        ExportError: what was written reads back differently.
    """
    import transformers

    check_projector(config, params)
    tower, llm = resolve(config.tower, "tower", "model.tower"), resolve(config.llm, "llm", "model.llm")
    vision = transformers.AutoConfig.from_pretrained(tower)
    if vision.model_type not in TOWERS:
        raise ConfigError(
            f"model.tower={config.tower}: the original LLaVA reads CLIP towers only, not {vision.model_type}; --to hf "
            "holds other transformer towers, too"
        )
    text = transformers.AutoConfig.from_pretrained(llm)
    if text.model_type != "llama":
        raise ConfigError(
            f"model.llm={config.llm}: the original LLaVA puts such projectors on the Llama family (Vicuna) only, not "
            f"on {text.model_type}; --to hf holds other LLMs, too"
        )
    weights = {llava_name(name): value.to(DTYPES[dtype]).contiguous() for name, value in params.items()}
    torch.save(weights, folder / "mm_projector.bin")
    content = _config(config, tower, text, params, dtype)
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    back = read_projector(folder)
    if any(not torch.equal(back[name], params[name].to(DTYPES[dtype]).float()) for name in params):
        raise ExportError(f"{folder / 'mm_projector.bin'} reads back differently; is the disk sound?")


def _config(config: ModelConfig, tower: str, text: Any, params: Params, dtype: str) -> dict[str, Any]:
    own = model_config(text.to_dict())
    own.pop("dtype", None)
    return {
        **own,
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "torch_dtype": dtype,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": True,
        "freeze_mm_mlp_adapter": False,
        "mm_projector_type": "linear" if "linear.weight" in params else "mlp2x_gelu",
        "mm_hidden_size": next(value.shape[1] for value in params.values() if value.dim() == 2),
        "mm_vision_tower": str(Path(tower).resolve()) if Path(tower).is_dir() else tower,
        "mm_vision_select_layer": config.feature_layer,
        "mm_vision_select_feature": "cls_patch" if config.keep_cls else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "square",
        "tokenizer_padding_side": "right",
    }
