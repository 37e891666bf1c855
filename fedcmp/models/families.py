"""Families of transformers: which were tested, and which class reads the vision part alone."""

from __future__ import annotations

from typing import Any

TESTED_TOWERS = (
    "beit",
    "clip",
    "clip_vision_model",
    "convnext",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "mobilenet_v2",
    "resnet",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "siglip2_vision_model",
    "swin",
    "vit",
)
"""`model_type` of the families that the tests read. Others are tried in the same way."""

VISION_CLASSES = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
"""Families whose full checkpoints hold a text model, too, which these classes leave out."""

TESTED_LLMS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
)
"""`model_type` of the families that the tests train through. Others are tried when they load."""


def tower_class(model_type: str) -> Any:
    """The class of transformers that reads a tower."""
    import transformers

    return getattr(transformers, VISION_CLASSES.get(model_type, "AutoModel"))
