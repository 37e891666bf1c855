"""What is known from the configs of the frozen models before a weight is read: widths, tokens, bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import nn

from fedcmp.errors import ConfigError, FedcmpError
from fedcmp.models.cost import Decoder, tower_operations
from fedcmp.models.llms import LanguageModel, load_tokenizer, meta_llm
from fedcmp.models.loading import num_bytes, quiet_transformers
from fedcmp.models.settings import DTYPES, ModelConfig
from fedcmp.models.towers import meta_tower

Built = TypeVar("Built")
LONGEST_CAPTION = 1024
"""Tokens of a caption where neither the user nor the LLM's positions limit it."""
LEAST_CAPTION = 64
"""Tokens that a caption gets beyond the trained positions of a rotary LLM."""


class TowerOutline(NamedTuple):
    """A vision tower: width d of its features, image tokens T of one picture, its weights in memory, in
    ``model.tower_dtype``, without blocks that are never read, and what one picture costs."""

    width: int
    tokens: int
    num_bytes: int
    operations: float


class Positions(NamedTuple):
    """How many positions an LLM was trained with (None: unknown), and whether they are a table, with none beyond."""

    number: int | None
    learned: bool


class LlmOutline(NamedTuple):
    """A language model."""

    width: int
    """Width D of its token embeddings."""
    num_bytes: int
    """Its weights in memory, in ``model.llm_dtype``."""
    layer_bytes: int
    """The part of them that is in decoder layers, which ranks may share."""
    decoder: Decoder
    positions: Positions
    num_embeddings: int
    """Rows of its table of token embeddings."""
    tokenizer: Any
    """None: its files are not there."""


def outline_tower(config: ModelConfig) -> TowerOutline | None:
    """The tower of ``model.tower``, built without weights; None where it is not on this machine or needs its weights.

    Raises:
        ConfigError: there is no such folder, or its layers or tokens are not what the config asks for.
    """
    tower = known(lambda: meta_tower(config, local=True))
    if tower is None:
        return None
    size, rows, columns = num_bytes(tower.model), *tower.grid
    cost = tower_operations(size // DTYPES[config.tower_dtype].itemsize, rows * columns + tower.num_prefix)
    return TowerOutline(tower.width, tower.num_tokens, size, cost)


def outline_llm(config: ModelConfig) -> LlmOutline | None:
    """The language model of ``model.llm``, as ``outline_tower``."""
    model = known(lambda: meta_llm(config, local=True))
    if model is None:
        return None
    rows, width = model.get_input_embeddings().weight.shape
    layers, item = num_bytes(LanguageModel(model, None, 0).layers), DTYPES[config.llm_dtype].itemsize
    decoder = Decoder.of(model, layers // item, item)
    return LlmOutline(width, num_bytes(model), layers, decoder, find_positions(model), rows, _tokenizer(config))


def known(build: Callable[[], Built]) -> Built | None:
    """What ``build`` makes of configs; None where they are not on this machine, or are not enough."""
    try:
        with quiet_transformers():
            return build()
    except FedcmpError:
        raise
    except Exception:  # each family raises errors of its own
        return None


def _tokenizer(config: ModelConfig) -> Any:
    try:
        found = load_tokenizer(config, local=True)
    except FedcmpError:
        return None
    return found if found.encode("a", add_special_tokens=False) else None  # one without files knows no letter


def find_positions(model: Any) -> Positions:
    """Reads the config and the tables of a causal LM of transformers, also of one on the meta device."""
    config = model.config.get_text_config()
    number = getattr(config, "max_position_embeddings", None)
    table = model.get_input_embeddings()
    # OPT's table has two rows more than it has positions
    learned = any(
        isinstance(one, nn.Embedding) and one is not table and 0 <= one.num_embeddings - (number or 0) <= 2
        for one in model.modules()
    )
    return Positions(number, learned)


def caption_room(positions: Positions, before: int, asked: int | None, generated: int, name: str) -> tuple[int, str]:
    """The longest caption in tokens, its end included, and a warning or nothing.

    Args:
        positions: of the LLM. Where they are no table, it reads on beyond them, with a warning.
        before: BOS and image tokens.
        asked: ``data.max_caption_tokens``.
        generated: ``evaluation.max_tokens``.
        name: of the LLM in errors.

    Raises:
        ConfigError: a table of positions is too short.

    >>> caption_room(Positions(256, learned=False), before=50, asked=None, generated=64, name="demo")
    (206, '')
    """
    if positions.number is None:
        return asked or LONGEST_CAPTION, ""
    left = positions.number - before
    room = asked or min(LONGEST_CAPTION, max(left, 2 if positions.learned else LEAST_CAPTION))
    for key, wanted in (("data.max_caption_tokens", room), ("evaluation.max_tokens", generated)):
        if wanted > left:
            problem = f"{key}={wanted} is more than model.llm={name} has positions left behind {before} of the picture"
            if positions.learned:
                raise ConfigError(f"{problem}: {max(left, 0)}; model.token_grid leaves more")
            return room, f"{problem}: it was not trained on texts that long"
    return room, ""
