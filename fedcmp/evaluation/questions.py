"""Yes/no questions, as losses that are compared.

``question``, for language models that follow instructions: the picture, then "Is there a NAME in the image? Answer yes
or no." The answer is yes if " Yes" is likelier than " No" (the question itself carries no loss).

``statement``, for those that know captions only: the picture's own caption is true, ``false_caption`` is not. L(s | x)
is the loss, in nats, of statement s after picture x on the tokens in which the two captions differ. The answer is yes
if the picture makes the statement likelier than other pictures do:

    L(s | x) < (mean of L(s | y) over y that show its object + mean of L(s | z) over z that do not) / 2

where y and z are the next two pictures of each sort in the domain, mixed by a hash, in a circle from x on. Both sorts
are needed: most pictures lack the object, and a false statement is as unlikely after x as after them, so that against
those alone the best model would be right by chance only. Where no other picture shows the object, z alone count. Equal
losses mean no.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fedcmp.data.collate import encode_texts
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.evaluation.cider import words_of
from fedcmp.evaluation.sharing import mixed
from fedcmp.types import IGNORE, Batch

OTHERS = 2
"""Other pictures of each sort that a statement is compared on."""
PROMPT = "Is there a {} in the image? Answer yes or no."
ANSWERS = (" Yes", " No")

Encode = Callable[[Sequence[str]], list[tuple[int, ...]]]
"""Texts to tokens."""


class Pair(NamedTuple):
    """Two objects to ask about."""

    position: int
    """Which sample."""
    kind: str
    """How the absent object was chosen."""
    present: str
    """An object that its picture shows."""
    absent: str
    """One that it does not."""


class Statement(NamedTuple):
    """Tokens of a text up to the last that counts, and the first that does: its loss is on ``[start:]``."""

    tokens: tuple[int, ...]
    start: int


class Row(NamedTuple):
    """A statement after the picture of a sample."""

    statement: Statement
    position: int


class Question(NamedTuple):
    """The answer is yes if ``row`` has a lower loss than the mean over ``against`` of the means of their losses."""

    kind: str
    truth: bool
    row: Row
    against: tuple[tuple[Row, ...], ...]

    def answer(self, losses: Mapping[Row, float]) -> bool:
        """Whether the answer is yes, given the losses of all its rows in nats."""
        means = [sum(losses[row] for row in group) / len(group) for group in self.against]
        return losses[self.row] < sum(means) / len(means)


def ask(pairs: Sequence[Pair], encode: Encode) -> list[Question]:
    """Two questions a pair, of the form ``question``."""
    questions = []
    for pair in pairs:
        for truth, name in ((True, pair.present), (False, pair.absent)):
            found = contrast(*encode([PROMPT.format(name) + answer for answer in ANSWERS]))
            if found is not None:
                yes, no = (Row(statement, pair.position) for statement in found)
                questions.append(Question(pair.kind, truth, yes, ((no,),)))
    return questions


def state(
    pairs: Sequence[Pair], samples: Sequence[Sample], objects: Sequence[tuple[str, ...]], source: Source, encode: Encode
) -> list[Question]:
    """Two questions a pair, of the form ``statement``; none for a pair whose captions are equal, or are when cut.

    Args:
        pairs: what to ask about.
        samples: the held-out samples.
        objects: what each shows.
        source: makes false captions.
        encode: captions to tokens.
    """
    questions = []
    circles = mixed([sample.domain for sample in samples], [sample.id for sample in samples])
    for pair in pairs:
        false = false_caption(pair, source, samples, objects)
        found = contrast(*encode([samples[pair.position].caption, false])) if false is not None else None
        if found is None:
            continue
        circle = circles[samples[pair.position].domain]
        place = circle.index(pair.position)
        labelled = [other for other in circle[place + 1 :] + circle[:place] if objects[other]]
        for truth, name, statement in zip((True, False), (pair.present, pair.absent), found, strict=True):
            sorts = ([other for other in labelled if (name in objects[other]) is shown] for shown in (True, False))
            against = tuple(tuple(Row(statement, other) for other in sort[:OTHERS]) for sort in sorts if sort)
            questions.append(Question(pair.kind, truth, Row(statement, pair.position), against))
    return questions


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[Statement, Statement] | None:
    """Two texts, each with the tokens in which they differ, at least one; None for equal texts and for no text.

    Equal tokens at both ends are left out, since they do not show which of the texts is true.

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

    It is the source's own, or else the caption of another picture of the domain that shows the absent object and not
    the present one, and of these the one that differs in the fewest words. None where there is no such caption.
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
    longest = max(len(one.tokens) for one in statements)
    ids = torch.full((len(statements), longest), pad_id)
    labels = torch.full((len(statements), longest), IGNORE)
    for row, one in enumerate(statements):
        ids[row, : len(one.tokens)] = tokens = torch.tensor(one.tokens)
        labels[row, one.start : len(one.tokens)] = tokens[one.start :]
    return {"input_ids": ids, "labels": labels}
