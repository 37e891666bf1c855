"""Whether a Llava can hold the parts of a run, checked before anything is written."""

from __future__ import annotations

from typing import Any

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import ModelConfig, VisionTower
from fedcmp.types import Params


def check_projector(config: ModelConfig, params: Params) -> None:
    """Whether a Llava, of transformers or the original, can hold a projector and what is done to image tokens.

    Raises:
        ConfigError: a setting has no place in a Llava.
    """
    second = params.get("linear_2.weight")
    hidden = 0 if second is None or second.shape[0] == second.shape[1] else second.shape[1]
    for key, value, needed in (
        ("projector.layer_norm", "norm.weight" in params, False),
        ("token_grid", config.token_grid, 0),
        ("pixel_shuffle", config.pixel_shuffle, 1),
        ("projector.hidden", hidden, 0),
    ):
        if value != needed:
            raise ConfigError(f"model.{key}={value}: a Llava needs {needed}; such a projector cannot be exported")


def check_tower(name: str, tower: VisionTower) -> None:
    """Whether transformers' Llava can hold the vision tower that ``model.tower`` names.

    Raises:
        ConfigError: it gives no hidden states over a grid of patches, or other tokens are dropped of it.
    """
    kind = tower.model.config.model_type
    patch = getattr(tower.model.config, "patch_size", None)
    if tower.is_map or tower.naflex_side or not isinstance(patch, int):
        raise ConfigError(f"model.tower={name}: a Llava needs a transformer over patches, got {kind}")
    if tower.drop_cls and tower.num_prefix > 1:
        raise ConfigError(
            f"model.tower={name}: a Llava drops at most 1 of the {tower.num_prefix} tokens before the patches of "
            f"{kind}; only projectors trained with model.keep_cls=true can be exported"
        )


def check_llm(name: str, model: Any) -> None:
    """Whether transformers' Llava can hold the language model that ``model.llm`` names.

    Raises:
        ConfigError: its logits are more than a matrix product, or parts of it have other names or widths.
    """
    text = model.config.get_text_config()
    problems = {
        "a bias on its logits": getattr(model.get_output_embeddings(), "bias", None) is not None,
        "a bound on its logits": getattr(text, "final_logit_softcapping", None) is not None,
        "embeddings of another width than its layers": model.get_input_embeddings().weight.shape[1] != text.hidden_size,
        "a head tied to an embedding of another name": model.config.tie_word_embeddings
        and not hasattr(model.base_model, "embed_tokens"),
    }
    for problem, found in problems.items():
        if found:
            raise ConfigError(f"model.llm={name}: a Llava cannot hold {problem} ({model.config.model_type})")
