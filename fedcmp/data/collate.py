"""Captions to tokens and examples to batches. Template ``plain``: the caption and its end, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedcmp.data.records import Sample
from fedcmp.errors import DataError
from fedcmp.types import IGNORE, Batch


def encode_texts(tokenizer: Any, texts: Sequence[str], end_id: int, *, lowercase: bool = False) -> list[list[int]]:
    """Each text's tokens, without an end.

    Control tokens that texts spell out (``</s>``, ``<image>``) are read letter by letter. Where ``end_id`` is a newline
    texts are put on one line, for a line break inside a caption would be its end.
    """
    if not texts:
        return []
    if tokenizer.decode([end_id]) == "\n":
        texts = [" ".join(text.split()) for text in texts]
    texts = [text.lower() for text in texts] if lowercase else list(texts)
    tokens: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokens


@dataclass(frozen=True)
class CaptionEncoder:
    """Samples to the tokens of their captions."""

    tokenizer: Any
    """Of the LLM."""
    end_id: int
    """The token that ends a caption."""
    num_embeddings: int
    """Rows of the LLM's table of embeddings."""
    max_tokens: int = 1024
    """The longest caption with its end; a longer one is cut and has no end, so that none is learned there."""
    lowercase: bool = False

    @classmethod
    def of(cls, llm: Any, max_tokens: int = 1024, *, lowercase: bool = False) -> CaptionEncoder:
        """The encoder of a ``LanguageModel``."""
        return cls(llm.tokenizer, llm.end_id, llm.num_embeddings, max_tokens, lowercase)

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Each caption's tokens: ``[L_i]``.

        Raises:
            DataError: the tokenizer finds no token in a caption, reads a control token in it, or one that the LLM's
                table lacks.
        """
        encoded = encode_texts(self.tokenizer, [one.caption for one in samples], self.end_id, lowercase=self.lowercase)
        control = _control_ids(self.tokenizer)
        for sample, tokens in zip(samples, encoded, strict=True):
            if not tokens or control.intersection(tokens) or max(tokens) >= self.num_embeddings:
                raise DataError(
                    f"{sample.origin}: model.llm: the tokenizer finds none, a control token or one beyond the LLM's "
                    f"{self.num_embeddings} embeddings in the caption {sample.caption!r}: {tokens}"
                )
        return [torch.tensor([*tokens, self.end_id][: self.max_tokens]) for tokens in encoded]

    def count_cut(self, samples: Sequence[Sample]) -> int:
        """How many captions are longer than ``max_tokens``."""
        return sum(int(tokens[-1]) != self.end_id for tokens in self(may_be_cut(samples, self.max_tokens)))


def may_be_cut(samples: Sequence[Sample], max_tokens: int) -> list[Sample]:
    """Those whose caption has bytes enough for more than ``max_tokens``, its end included."""
    return [one for one in samples if len(one.caption.encode()) + 2 > max_tokens]


def _control_ids(tokenizer: Any) -> set[int]:
    """Special tokens, without the one for unknown words where it is nothing else."""
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        unknown = None
    added = {token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
    return added.union(tokenizer.all_special_ids) - {unknown}


def collate(tokens: Sequence[Tensor], pad_id: int, **images: Tensor) -> Batch:
    """Pads captions to the right.

    Args:
        tokens: ``[L_i]`` each.
        pad_id: fills ``input_ids``; labels are IGNORE there.
        images: ``features=[B, T, d]`` or ``pixels=[B, 3, H, W]``.
    """
    labels = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=IGNORE)
    return {**images, "input_ids": labels.masked_fill(labels == IGNORE, pad_id), "labels": labels}


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
