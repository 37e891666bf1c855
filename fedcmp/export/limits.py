"""What a Llava can hold, asked before anything is written. Every refusal names the setting and the way out."""

from __future__ import annotations

from typing import Any

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import ModelConfig, VisionTower
from fedcmp.types import Params


def check_projector(config: ModelConfig, params: Params) -> None:
    """Whether a Llava, of transformers or the original, can hold a projector and the way to it.

    Raises:
        ConfigError: it has a part that a Llava lacks.
    """
    if "norm.weight" in params:
        raise ConfigError(
            "model.projector.layer_norm: a Llava has no normalisation in front of its projector; projectors trained "
            "with model.projector.layer_norm=false can be exported"
        )
    if config.token_grid:
        raise ConfigError(
            f"model.token_grid={config.token_grid}: a Llava does not average image tokens; projectors trained with "
            "model.token_grid=0 can be exported"
        )
    if config.pixel_shuffle > 1:
        raise ConfigError(
            f"model.pixel_shuffle={config.pixel_shuffle}: a Llava does not put image tokens side by side; projectors "
            "trained with model.pixel_shuffle=1 can be exported"
        )
    if "linear_2.weight" in params:
        width, hidden = params["linear_2.weight"].shape
        if hidden != width:
            raise ConfigError(
                f"model.projector.hidden={hidden}: the hidden width of a Llava's projector is that of the LLM; "
                f"projectors trained with model.projector.hidden=0 (here {width}) can be exported"
            )


def check_tower(name: str, tower: VisionTower, config: Any) -> None:
    """Whether transformers' Llava can hold a vision tower.

    Args:
        name: as ``model.tower`` has it.
        tower: the tower that the projector was trained on.
        config: its configuration in transformers.

    Raises:
        ConfigError: it gives no sequence of hidden states over a grid of patches, or other tokens are dropped of it.
    """
    patches = tower.takes_pixels and isinstance(getattr(config, "patch_size", None), int)
    if tower.is_map or not patches:
        raise ConfigError(
            f"model.tower={name}: a Llava reads a hidden state of a transformer over patches, and {config.model_type} "
            "has none; runs with towers like CLIP, SigLIP and DINOv2 can be exported"
        )
    if tower.drop_cls and tower.num_prefix > 1:
        raise ConfigError(
            f"model.tower={name}: {config.model_type} has {tower.num_prefix} tokens before its patches, and a Llava "
            "drops one or none; projectors trained with model.keep_cls=true can be exported"
        )


def check_llm(name: str, model: Any) -> None:
    """Whether transformers' Llava can hold a language model.

    Raises:
        ConfigError: its logits are more than a matrix product, or parts of it have other names or widths.
    """
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    if getattr(head, "bias", None) is not None:
        what = "a bias on its logits"
    elif getattr(text, "final_logit_softcapping", None) is not None:
        what = "a bound on its logits (final_logit_softcapping)"
    elif model.get_input_embeddings().weight.shape[1] != text.hidden_size:
        what = "token embeddings of another width than its layers"
    elif model.config.tie_word_embeddings and not hasattr(model.base_model, "embed_tokens"):
        what = "a head that is tied to its embedding under another name"
    else:
        return
    raise ConfigError(
        f"model.llm={name}: {model.config.model_type} has {what}, which a Llava cannot hold; runs with LLMs like "
        "Llama and Qwen2 can be exported"
    )


def check_class(key: str, name: str, model: Any) -> None:
    """Whether transformers makes the same model again from the configuration, as a Llava does.

    Raises:
        ConfigError: it would make another one.
    """
    import transformers

    made = transformers.MODEL_MAPPING.get(type(model.config), None)
    if made is not type(model):
        found = getattr(made, "__name__", "no model")
        raise ConfigError(
            f"{key}={name}: from its configuration a Llava would make {found}, not {type(model).__name__}; "
            "it cannot be exported"
        )
