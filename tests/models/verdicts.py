"""What Llava of transformers can hold of a family, by the family's own parts; tests hold each verdict to be true."""

from __future__ import annotations

from models.tiny import MAPS

from fedcmp.models.backbones import LanguageModel

PREFIX = {"clip": 1, "dinov2": 1, "dinov2-registers": 4, "dinov3": 5, "vit": 1, "deit": 2, "beit": 1}
"""Tokens before the patches of the tiny towers; none where nothing is said."""


def llava_selects(name: str) -> str:
    """Whether ``LlavaModel.get_image_features`` selects what we read of a tiny tower."""
    if name in MAPS:
        return "no: it reads hidden states"
    if name == "siglip2-naflex":
        return "no: it passes no shapes"
    if PREFIX.get(name, 0) > 1:
        return f"with `keep_cls` only: it drops 1 of {PREFIX[name]}"
    return "yes"


def llava_holds(llm: LanguageModel) -> str:
    """Whether ``LlavaForConditionalGeneration`` computes our loss from this LLM's weights."""
    config = llm.model.config
    if llm.width != config.hidden_size:
        return "no: it projects to the width of the layers, not of the words"
    if llm.model.get_output_embeddings().bias is not None:
        return "no: it has no place for the head's bias"
    if getattr(config, "final_logit_softcapping", None) is not None:
        return "but for the bound on the logits"
    if config.tie_word_embeddings and not hasattr(llm.model.base_model, "embed_tokens"):
        return "yes, with head and embedding untied"
    return "yes"
