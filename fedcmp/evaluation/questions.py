"""Yes/no questions, as losses that are compared.

``question``, for language models that follow instructions: the picture, then "Is there a NAME in the image? Answer yes
or no." The answer is yes if " Yes" is likelier than " No" (the question itself carries no loss).

``statement``, for those that know captions only: the picture's own caption is true, ``statements.false_caption`` is
not. L(s | x) is the loss, in nats, of statement s after picture x on the tokens in which the two captions differ. The
answer is yes if the picture makes the statement likelier than other pictures do:

    L(s | x) < (mean of L(s | y) over y that show its object + mean of L(s | z) over z that do not) / 2

where y and z are the next two pictures of each sort in the domain, mixed by a hash, in a circle from x on. Both sorts
are needed: most pictures lack the object, and a false statement is as unlikely after x as after them, so that against
those alone the best model could only toss a coin. Where no other picture shows the object, z alone count. Equal losses
mean no.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.evaluation.pairs import Pair
from fedcmp.evaluation.sharing import mixed
from fedcmp.evaluation.statements import Encode, Statement, contrast, false_caption

OTHERS = 2
"""Other pictures of each sort that a statement is compared on."""
PROMPT = "Is there a {} in the image? Answer yes or no."
ANSWERS = (" Yes", " No")


class Row(NamedTuple):
    """A statement after the picture of a sample."""

    statement: Statement
    position: int


class Question(NamedTuple):
    """The answer is yes if ``row`` has a lower loss than the mean over ``against`` of the means of their losses."""

    kind: str
    """How its absent object was chosen."""
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
    pairs: Sequence[Pair],
    samples: Sequence[Sample],
    objects: Sequence[tuple[str, ...]],
    source: Source,
    encode: Encode,
) -> list[Question]:
    """Two questions a pair, of the form ``statement``; none for a pair whose captions are equal, or are when cut.

    Args:
        pairs: what to ask about.
        samples: the held-out samples.
        objects: what each shows.
        source: words false captions.
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
        following = circle[place + 1 :] + circle[:place]
        for truth, name, statement in zip((True, False), (pair.present, pair.absent), found, strict=True):
            groups = others(name, following, objects)
            against = tuple(tuple(Row(statement, other) for other in group) for group in groups)
            questions.append(Question(pair.kind, truth, Row(statement, pair.position), against))
    return questions


def others(name: str, following: Sequence[int], objects: Sequence[tuple[str, ...]]) -> list[tuple[int, ...]]:
    """The next pictures that show an object, and the next that do not; a sort that has none is left out.

    >>> others("cat", [2, 3, 4, 5, 0], [("cat",), ("dog",), ("cat", "dog"), ("dog",), (), ("cat",)])
    [(2, 5), (3,)]
    """
    found: dict[bool, list[int]] = defaultdict(list)
    for other in following:
        if objects[other]:
            found[name in objects[other]].append(other)
    return [tuple(found[sort][:OTHERS]) for sort in (True, False) if found[sort]]
