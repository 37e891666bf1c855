"""Captions to tokens and examples to batches. Template ``plain``: the caption and its end, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedcmp.data.records import Sample
from fedcmp.errors import DataError
from fedcmp.types import IGNORE, Batch


def as_read(tokenizer: Any, texts: Sequence[str], end_id: int, *, lowercase: bool = False) -> list[str]:
    """Texts as they are tokenized: in lower case where asked for, and on one line where ``end_id`` is a newline.

    A line break inside a caption would be its end: what is generated would stop there.
    """
    if tokenizer.decode([end_id]) == "\n":
        texts = [" ".join(text.split()) for text in texts]
    return [text.lower() for text in texts] if lowercase else list(texts)


def encode_captions(
    tokenizer: Any, samples: Sequence[Sample], end_id: int, *, lowercase: bool = False, max_tokens: int = 64
) -> list[Tensor]:
    """Each caption's tokens, as ``as_read``, with ``end_id`` last, at most ``max_tokens`` in all: ``[L_i]``.

    Raises:
        DataError: the tokenizer finds no token in a caption.
    """
    texts = as_read(tokenizer, [sample.caption for sample in samples], end_id, lowercase=lowercase)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    for sample, tokens in zip(samples, encoded, strict=True):
        if not tokens:
            raise DataError(f"{sample.origin}: the tokenizer finds no token in the caption {sample.caption!r}")
    return [torch.tensor([*tokens[: max_tokens - 1], end_id]) for tokens in encoded]


def collate(tokens: Sequence[Tensor], pad_id: int, **images: Tensor) -> Batch:
    """Pads captions to the right.

    Args:
        tokens: ``[L_i]`` each.
        pad_id: fills ``input_ids``; labels are IGNORE there.
        images: ``features=[B, T, d]`` or ``pixels=[B, 3, H, W]``.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        **images,
        "input_ids": pad(list(tokens), batch_first=True, padding_value=pad_id),
        "labels": pad(list(tokens), batch_first=True, padding_value=IGNORE),
    }


class Batches:
    """Sample positions to a batch, on a device: cached features and tokens.

    Args:
        features: gives ``[n, T, d]`` for n positions.
        tokens: each sample's tokens, ``[L_i]``.
        pad_id: fills ``input_ids`` to the right.
        device: where batches go.
    """

    def __init__(self, features: Any, tokens: Sequence[Tensor], pad_id: int, device: torch.device) -> None:
        self.features, self.tokens, self.pad_id, self.device = features, tokens, pad_id, device

    def __call__(self, positions: Sequence[int]) -> Batch:
        batch = collate([self.tokens[p] for p in positions], self.pad_id, features=self.features[positions])
        return {name: value.to(self.device) for name, value in batch.items()}
