"""Words for yes/no questions, and which of their tokens decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fedcmp.data.collate import encode_texts
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.evaluation.cider import words_of
from fedcmp.evaluation.pairs import Pair
from fedcmp.types import IGNORE, Batch

Encode = Callable[[Sequence[str]], list[tuple[int, ...]]]
"""Texts to tokens."""


class Statement(NamedTuple):
    """Tokens ``[:stop]`` of a text; what it is worth is the loss on ``[start:stop]``."""

    tokens: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """One past the last token that counts; what follows is left out, a causal model cannot see it there."""
        return len(self.tokens)


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[Statement, Statement] | None:
    """Two texts, each with the tokens in which they differ, at least one; None for equal texts and for no text.

    What they begin and end with alike tells nothing about which of them is true.

    >>> [(s.start, s.tokens) for s in contrast((5, 6, 7, 9), (5, 8, 8, 7, 9))]
    [(1, (5, 6)), (1, (5, 8, 8))]
    >>> [(s.start, s.tokens) for s in contrast((5, 9), (5, 6, 9))]
    [(1, (5, 9)), (1, (5, 6, 9))]
    """
    if one == other or not one or not other:
        return None
    shortest = min(len(one), len(other))
    start = next((place for place in range(shortest) if one[place] != other[place]), shortest - 1)
    alike = 0
    while alike < shortest - start - 1 and one[-1 - alike] == other[-1 - alike]:
        alike += 1
    return Statement(one[: len(one) - alike], start), Statement(other[: len(other) - alike], start)


def encoder(tokenizer: Any, end_id: int, *, lowercase: bool, max_tokens: int | None) -> Encode:
    """The encoding of captions, as in training but without their end, cut to ``max_tokens`` (None: whole)."""

    def encode(texts: Sequence[str]) -> list[tuple[int, ...]]:
        encoded = encode_texts(tokenizer, texts, end_id, lowercase=lowercase)
        return [tuple(tokens[:max_tokens]) for tokens in encoded]

    return encode


def false_caption(
    pair: Pair, source: Source, samples: Sequence[Sample], objects: Sequence[tuple[str, ...]]
) -> str | None:
    """A caption that would fit if the absent object were there in place of the present one.

    As the source words it, or else the caption of another picture of the domain that shows the absent object and not
    the present one: the one that differs in the fewest words. None where there is no such caption.
    """
    sample = samples[pair.position]
    swapped = source.swapped(sample, pair.present, pair.absent)
    if swapped is not None:
        return swapped
    own = set(words_of(sample.caption))
    donors = [
        one.caption
        for one, shown in zip(samples, objects, strict=True)
        if one.domain == sample.domain and pair.absent in shown and pair.present not in shown
    ]
    return min(donors, key=lambda text: len(own ^ set(words_of(text))), default=None)


def text_batch(statements: Sequence[Statement], pad_id: int) -> Batch:
    """``input_ids [B, L]`` and ``labels [B, L]``, padded to the right; labels only where the texts differ."""
    longest = max(one.stop for one in statements)
    ids = torch.full((len(statements), longest), pad_id)
    labels = torch.full((len(statements), longest), IGNORE)
    for row, one in enumerate(statements):
        ids[row, : one.stop] = torch.tensor(one.tokens)
        labels[row, one.start : one.stop] = ids[row, one.start : one.stop]
    return {"input_ids": ids, "labels": labels}
