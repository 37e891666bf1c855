"""What the configs of the frozen models tell before a weight is read: widths, tokens, bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from fedcmp.errors import FedcmpError
from fedcmp.models.config import ModelConfig, resolve, width_of
from fedcmp.models.llms import decoder_layers, load_tokenizer, meta_llm
from fedcmp.models.loading import quiet_transformers
from fedcmp.models.positions import Positions, find_positions
from fedcmp.models.tower_loading import meta_tower


class TowerOutline(NamedTuple):
    """A vision tower."""

    width: int
    """Width d of its features."""
    tokens: int
    """Image tokens T of one picture, as the projector gets them."""
    num_bytes: int
    """Its weights in memory, in ``model.tower_dtype``; blocks that are never read are left out."""


class LlmOutline(NamedTuple):
    """A language model."""

    width: int
    """Width D of its token embeddings."""
    num_bytes: int
    """Its weights in memory, in ``model.llm_dtype``."""
    layer_bytes: int
    """The part of them that is in decoder layers, which ranks may share."""
    positions: Positions
    num_embeddings: int
    """Rows of its table of token embeddings."""
    tokenizer: Any
    """None: its files are not there."""


def outline_tower(config: ModelConfig) -> TowerOutline | None:
    """The tower of ``model.tower``, built without weights.

    Returns:
        None where that cannot be: a hub id that is not on this machine, or a model that needs its weights to be built.

    Raises:
        ConfigError: there is no such folder, or its layers or tokens are not what the config asks for.
    """
    try:
        with quiet_transformers():
            tower = meta_tower(config, local=True)
    except FedcmpError:
        raise
    except Exception:  # whatever a model of this kind wants: it is only a forecast
        return None
    return TowerOutline(tower.width, tower.num_tokens, _num_bytes(tower.model))


def outline_llm(config: ModelConfig) -> LlmOutline | None:
    """The language model of ``model.llm``, built without weights; None as for ``outline_tower``.

    Raises:
        ConfigError: there is no such folder.
    """
    resolve(config.llm, "llm", "model.llm")
    try:
        with quiet_transformers():
            model = meta_llm(config, local=True)
        rows, width = model.get_input_embeddings().weight.shape
        layers = _num_bytes(decoder_layers(model))
        return LlmOutline(width, _num_bytes(model), layers, find_positions(model), rows, _tokenizer(config))
    except Exception:
        return None


def _tokenizer(config: ModelConfig) -> Any:
    try:
        with quiet_transformers():
            found = load_tokenizer(config, local=True)
    except FedcmpError:
        return None
    return found if found.encode("a", add_special_tokens=False) else None  # made of no files, it knows no letter


def feature_width(config: ModelConfig) -> int | None:
    """Width d of the features that the projector gets, by the tower's config.json alone; None as for ``width_of``.

    >>> feature_width(ModelConfig(feature_layer=[-2, -3], pixel_shuffle=2))
    768
    """
    width = width_of(config.tower, "tower", "model.tower")
    return None if width is None else width * len(config.layers) * config.pixel_shuffle**2


def _num_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))
