"""How much a run computes."""

from __future__ import annotations

from typing import NamedTuple


class Lengths(NamedTuple):
    """Tokens of a row: image tokens T, caption tokens L with their end, padded to the longest of a batch."""

    image: int
    caption: float
    """A mean over batches."""
    longest: int
    """Of all captions."""


class Effort(NamedTuple):
    """Training of the rank that has the most to do, an estimate; evaluation, decoding and fusing are not counted."""

    rows: int
    """On which it trains in the run."""
    lengths: Lengths
    rank: float
    """Its operations."""
    run: float
    """Those of all ranks."""
    at_once: int
    """Rows of one step."""
    activations: int
    """Bytes that its backward pass needs."""
    seconds: dict[str, float]
    """By GPU, at an assumed share of its peak in bfloat16; empty where the LLM has another type."""
