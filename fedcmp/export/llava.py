"""A run's projector as the original LLaVA leaves it after its first stage: mm_projector.bin and config.json."""

from __future__ import annotations

from pathlib import Path

import torch

from fedcmp.errors import ConfigError
from fedcmp.export.files import model_config, write_json
from fedcmp.export.hf import check_projector
from fedcmp.export.read import llava_name
from fedcmp.models.backbones import DTYPES, ModelConfig
from fedcmp.models.projector import KINDS, kind_of
from fedcmp.models.settings import resolve
from fedcmp.types import Params

TOWERS = ("clip", "clip_vision_model")
"""``model_type`` of what the original's ``CLIPVisionTower`` reads."""


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
    """
    import transformers

    check_projector(config, params)
    tower, llm = resolve(config.tower, "tower", "model.tower"), resolve(config.llm, "llm", "model.llm")
    vision, text = (transformers.AutoConfig.from_pretrained(path) for path in (tower, llm))
    for key, value, needed, fits in (
        ("feature_layer", list(config.layers), "one hidden state", len(config.layers) == 1),
        ("tower", config.tower, "a CLIP tower", vision.model_type in TOWERS),
        ("llm", config.llm, "an LLM of the Llama family", text.model_type == "llama"),
    ):
        if not fits:
            raise ConfigError(f"model.{key}={value}: the original LLaVA needs {needed}; --to hf holds others, too")
    weights = {llava_name(name): value.to(DTYPES[dtype]).contiguous() for name, value in params.items()}
    torch.save(weights, folder / "mm_projector.bin")
    kind = kind_of(params)
    own = model_config(text.to_dict())
    own.pop("dtype", None)
    write_json(
        folder / "config.json",
        {
            **own,
            "model_type": "llava_llama",
            "architectures": ["LlavaLlamaForCausalLM"],
            "torch_dtype": dtype,
            "use_mm_proj": True,
            "tune_mm_mlp_adapter": True,
            "freeze_mm_mlp_adapter": False,
            "mm_projector_type": kind,
            "mm_hidden_size": params[f"{KINDS[kind][0]}.weight"].shape[1],
            "mm_vision_tower": str(Path(tower).resolve()) if Path(tower).is_dir() else tower,
            "mm_vision_select_layer": config.layers[0],
            "mm_vision_select_feature": "cls_patch" if config.keep_cls else "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "mm_patch_merge_type": "flat",
            "image_aspect_ratio": "square",
            "tokenizer_padding_side": "right",
        },
    )
