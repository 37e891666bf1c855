"""How many positions a sequence may have: BOS, image tokens, caption."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from fedcmp.errors import ConfigError

LONGEST_CAPTION = 1024
"""Tokens of a caption where neither the user nor the LLM's positions say less."""
LEAST_CAPTION = 64
"""Tokens that a caption gets beyond the trained positions of a rotary LLM."""


class Positions(NamedTuple):
    """What an LLM says of the length of its texts."""

    number: int | None
    """Positions that it was trained with; None: it does not say."""
    learned: bool
    """It has a table of them, and none beyond."""


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


class Room(NamedTuple):
    """What is left for captions."""

    tokens: int
    """The longest caption, its end included."""
    warning: str = ""
    """Texts may be longer than those that a rotary LLM was trained on; empty: they are not."""


def caption_room(positions: Positions, before: int, asked: int | None, generated: int, name: str) -> Room:
    """How long captions may be.

    Args:
        positions: of the LLM.
        before: BOS and image tokens.
        asked: ``data.max_caption_tokens``.
        generated: ``evaluation.max_tokens``.
        name: what errors call the LLM.

    Raises:
        ConfigError: a table of positions is too short. Rotary LLMs read on beyond theirs, with a warning.

    >>> caption_room(Positions(256, learned=False), before=50, asked=None, generated=64, name="demo").tokens
    206
    """
    if positions.number is None:
        return Room(asked or LONGEST_CAPTION)
    left, least = positions.number - before, 2 if positions.learned else LEAST_CAPTION
    room = asked or min(LONGEST_CAPTION, max(left, least))
    for key, wanted in (("data.max_caption_tokens", room), ("evaluation.max_tokens", generated)):
        if wanted > left:
            what = (
                f"model.llm: {name} has {positions.number} positions; BOS and image tokens take {before}, and "
                f"{key}={wanted} does not fit behind them"
            )
            if positions.learned:
                raise ConfigError(f"{what}: {max(left, 0)} are left; model.token_grid leaves fewer image tokens")
            return Room(room, f"{what}: it was not trained on texts that long")
    return Room(room)
