"""Captions that are cut: how many, and what to tell the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedcmp.build.shapes import Outline, find_room
from fedcmp.config import Config
from fedcmp.data.collate import CaptionEncoder
from fedcmp.data.records import Sample
from fedcmp.models.llms import find_end


def outline_encoder(config: Config, outline: Outline) -> tuple[CaptionEncoder, str] | None:
    """What the run would encode captions with, and a warning or nothing; None: unknown before the models are loaded.

    Raises:
        ConfigError: captions do not fit behind the image tokens, or the tokenizer has no end.
    """
    if outline.tower is None or outline.llm is None or outline.llm.tokenizer is None:
        return None
    llm = outline.llm
    room = find_room(config, llm.positions, outline.tower.tokens, llm.tokenizer)
    end_id = find_end(llm.tokenizer, config.model.end, config.model.llm)
    encoder = CaptionEncoder(llm.tokenizer, end_id, llm.num_embeddings, room.tokens, config.data.lowercase)
    return encoder, room.warning


def count_cut(splits: Mapping[str, Sequence[Sample]], encoder: CaptionEncoder) -> dict[str, int]:
    """By split, the captions that are longer than the encoder's most.

    Raises:
        DataError: a long caption cannot be encoded.
    """
    return {name: encoder.count_cut(samples) for name, samples in splits.items()}


def describe_cut(cut: dict[str, int], encoder: CaptionEncoder) -> str:
    """A sentence; empty where no caption is cut."""
    if not any(cut.values()):
        return ""
    counts = ", ".join(f"{count:,} of {name}" for name, count in cut.items() if count)
    return (
        f"captions longer than {encoder.max_tokens:,} tokens are cut ({counts}); data.max_caption_tokens sets the limit"
    )
