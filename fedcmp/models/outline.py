"""What the configs of the frozen models tell before a weight is read: widths, tokens, bytes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fedcmp.errors import FedcmpError
from fedcmp.models.backbones import DTYPES, ModelConfig, VisionTower, quiet_transformers, resolve, tower_class


class TowerOutline(NamedTuple):
    """A vision tower."""

    width: int
    """Width d of its features."""
    tokens: int
    """Image tokens T of one picture, as the projector gets them."""
    num_bytes: int
    """Its weights in memory; blocks that are never read are left out."""


class LlmOutline(NamedTuple):
    """A language model."""

    width: int
    """Width D of its token embeddings."""
    num_bytes: int
    """Its weights in memory, in ``model.llm_dtype``."""
    layer_bytes: int
    """The part of them that is in decoder layers, which ranks may share."""


def outline_tower(config: ModelConfig) -> TowerOutline | None:
    """The tower of ``model.tower`` on the meta device, where tensors have shapes and no content.

    Returns:
        None where that cannot be: a hub id that is not on this machine, or a model that needs its weights to be built.

    Raises:
        ConfigError: there is no such folder, or its layers or tokens are not what the config asks for.
    """
    import transformers

    path = resolve(config.tower, "tower", "model.tower")
    try:
        with quiet_transformers():
            found = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            kind = tower_class(found.model_type)
            own = getattr(kind, "config_class", None)  # of a full CLIP config, the vision part
            processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False, local_files_only=True)
            with torch.device("meta"):
                model = kind._from_config(own.from_pretrained(path)) if own else kind.from_config(found)
        tower = VisionTower(model, processor, config.feature_layer, config.keep_cls, config.token_grid)
    except FedcmpError:
        raise
    except Exception:  # whatever a model of this kind wants: it is only a forecast
        return None
    return TowerOutline(tower.width, tower.num_tokens, _num_bytes(tower.model))


def outline_llm(config: ModelConfig) -> LlmOutline | None:
    """The language model of ``model.llm`` on the meta device; None and errors as for ``outline_tower``."""
    import transformers

    path = resolve(config.llm, "llm", "model.llm")
    try:
        with quiet_transformers(), torch.device("meta"):
            found = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_config(found, dtype=DTYPES[config.llm_dtype])
        width = model.get_input_embeddings().weight.shape[1]
        return LlmOutline(width, _num_bytes(model), _num_bytes(model.get_decoder().layers))
    except Exception:
        return None


def _num_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))
