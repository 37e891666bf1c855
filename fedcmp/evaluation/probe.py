"""Yes/no questions about objects: does the model say yes where the object is there, and no where it is not?

Each picture gets six questions: three times one about an object that it shows and one about an object that it does not,
so that yes and no are right equally often. After POPE: Li, Du, Zhou, Wang, Zhao, Wen, "Evaluating Object Hallucination
in Large Vision-Language Models", EMNLP 2023, arXiv 2305.10355. The absent object is ``random``, ``popular`` (the one
that most pictures of the domain show) or ``adversarial`` (the one that is easiest to mistake).

Differs from the paper: objects are those of the picture's own domain. There, "adversarial" is the one that most often
occurs with the objects shown; pictures with one label each have no such statistics, so it is the object whose mean
frozen feature is the nearest to the picture's.

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

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fedcmp.data.collate import collate, encode_texts
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.distributed.messages import attempt
from fedcmp.distributed.team import Solo, Team, is_server
from fedcmp.evaluation.cider import words_of
from fedcmp.evaluation.losses import EvalData, HeldOut, images_of
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.evaluation.sharing import mixed, score_rows, spread
from fedcmp.seeding import numpy_rng
from fedcmp.types import IGNORE, Batch, Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment

KINDS = ("random", "popular", "adversarial")
"""How the absent object is chosen."""
OTHERS = 2
"""Other pictures of each sort that a statement is compared on."""
PROMPT = "Is there a {} in the image? Answer yes or no."

Encode = Callable[..., list[tuple[int, ...]]]
"""Texts to tokens."""
Objects = Sequence[tuple[str, ...]]
"""What each sample's picture shows; empty: unknown, or said at another sample of the picture."""


class Pair(NamedTuple):
    """Two objects to ask about: one that the picture of sample ``position`` shows, and one that it does not."""

    position: int
    kind: str
    present: str
    absent: str


class Row(NamedTuple):
    """Tokens after the picture of sample ``position``; their loss is on ``tokens[start:]``."""

    position: int
    tokens: tuple[int, ...]
    start: int


class Question(NamedTuple):
    """The answer is yes if ``row`` has a lower loss than the mean over ``against`` of the means of their losses."""

    kind: str
    truth: bool
    row: Row
    against: tuple[tuple[Row, ...], ...]


@torch.no_grad()
def probe(
    module: ProjectorAlignment, params: Params, held_out: HeldOut, settings: EvaluationConfig, team: Team | None = None
) -> dict[str, Any] | None:
    """What the projector ``params`` answers about the objects of held-out pictures: see ``tally``; None where there is
    nothing to ask. The number of ranks does not change the result.
    """
    team = team or Solo()
    module.eval()
    data, samples, source, llm = held_out.data, held_out.samples, held_out.source, module.llm
    # a picture's objects are at the first of its samples: it is asked about once, and not compared with itself
    objects: list[tuple[str, ...]] = [()] * len(samples)
    for group in data.shared:
        named = [name for position in group for name in source.objects(samples[position])]
        objects[group[0]] = tuple(dict.fromkeys(named)) if len(group) > 1 else tuple(named)
    asks = settings.questions if is_server(team) else 0
    pairs, error = attempt(lambda: _choose(module, data, samples, objects, asks) if asks else [])
    team.agree(error)
    # the server's choice counts: features may differ in their last bits from machine to machine
    plain: list[tuple[int, str, str, str]] = [(*pair,) for pair in pairs or []]
    shared, in_words = [Pair(*pair) for pair in team.share(plain)], settings.probe == "question"
    cut = None if in_words else held_out.max_tokens  # the answer comes last

    def encode(*texts: str) -> list[tuple[int, ...]]:
        found = encode_texts(llm.tokenizer, texts, llm.end_id, lowercase=held_out.lowercase)
        return [tuple(tokens[:cut]) for tokens in found]

    questions = _ask(shared, encode) if in_words else _state(shared, samples, objects, source, encode)
    if not questions:
        return None
    rows = list(dict.fromkeys(row for one in questions for group in ((one.row,), *one.against) for row in group))

    def score(places: range) -> Tensor:
        chunk = [rows[place] for place in places]
        images = images_of(data, [row.position for row in chunk])
        device = next(iter(images.values())).device
        texts = {name: value.to(device) for name, value in _text_batch(chunk, llm.pad_id).items()}
        nll, _ = module.nll(images | texts, params)
        return nll.double()[None]

    losses = dict(zip(rows, score_rows(team, len(rows), data.batch_size, score)[0].tolist(), strict=True))
    answers = []
    for one in questions:
        means = [sum(losses[row] for row in group) / len(group) for group in one.against]
        answers.append((one.kind, one.truth, losses[one.row] < sum(means) / len(means)))
    return tally(answers)


def _choose(
    module: ProjectorAlignment, data: EvalData, samples: Sequence[Sample], objects: Objects, limit: int
) -> list[Pair]:
    means = []
    for begin in range(0, len(samples), data.batch_size):
        batch = data.fetch(list(range(begin, min(begin + data.batch_size, len(samples)))))
        means.append(module.features(batch).float().mean(1).cpu())
    return choose_pairs([sample.id for sample in samples], objects, data.domains, torch.cat(means), limit)


def choose_pairs(
    ids: Sequence[str], objects: Objects, domains: Sequence[str], features: Tensor, limit: int
) -> list[Pair]:
    """Three pairs, one of each kind, for up to ``limit`` samples, spread over the domains.

    A sample can be asked about if its objects are known and some other sample of its domain shows something else. The
    choice depends on the samples alone, not on a run's seed: all runs on the same samples answer the same questions.

    Args:
        ids: of the n samples; they are the random stream, and their hashes the order.
        objects: what each shows.
        domains: the domain of each.
        features: ``[n, d]`` features of the frozen tower, averaged over their tokens.
        limit: samples, at most.
    """
    values, members = features.double(), defaultdict[str, dict[str, list[int]]](lambda: defaultdict(list))
    for position, (domain, shown) in enumerate(zip(domains, objects, strict=True)):
        for name in dict.fromkeys(shown):
            members[domain][name].append(position)
    askable = [place for place, shown in enumerate(objects) if shown and members[domains[place]].keys() - set(shown)]
    pairs = []
    for place in spread([domains[one] for one in askable], [ids[one] for one in askable], limit):
        position = askable[place]
        shown, by_name = objects[position], members[domains[position]]
        absent = sorted(by_name.keys() - set(shown))  # of equals the first by name
        near = torch.stack([values[by_name[name]].mean(0) for name in absent]) - values[position]
        picked = {
            "random": absent[int(numpy_rng(0, "probe", ids[position]).integers(len(absent)))],
            "popular": max(absent, key=lambda name: len(by_name[name])),
            "adversarial": absent[int(near.pow(2).sum(1).argmin())],
        }
        pairs += [Pair(position, kind, shown[i % len(shown)], picked[kind]) for i, kind in enumerate(KINDS)]
    return pairs


def _ask(pairs: Sequence[Pair], encode: Encode) -> list[Question]:
    """Two questions a pair, of the form ``question``."""
    questions = []
    for pair in pairs:
        for truth, name in ((True, pair.present), (False, pair.absent)):
            found = contrast(*encode(*(PROMPT.format(name) + answer for answer in (" Yes", " No"))))
            if found is not None:
                yes, no = (Row(pair.position, *text) for text in found)
                questions.append(Question(pair.kind, truth, yes, ((no,),)))
    return questions


def _state(
    pairs: Sequence[Pair], samples: Sequence[Sample], objects: Objects, source: Source, encode: Encode
) -> list[Question]:
    """Two questions a pair, of the form ``statement``; none for a pair whose captions are equal, or are when cut."""
    questions = []
    circles = mixed([sample.domain for sample in samples], [sample.id for sample in samples])
    for pair in pairs:
        false = false_caption(pair, source, samples, objects)
        found = contrast(*encode(samples[pair.position].caption, false)) if false is not None else None
        if found is None:
            continue
        circle = circles[samples[pair.position].domain]
        place = circle.index(pair.position)
        labelled = [other for other in circle[place + 1 :] + circle[:place] if objects[other]]
        for truth, name, text in zip((True, False), (pair.present, pair.absent), found, strict=True):
            sorts = ([other for other in labelled if (name in objects[other]) is shown] for shown in (True, False))
            against = tuple(tuple(Row(other, *text) for other in sort[:OTHERS]) for sort in sorts if sort)
            questions.append(Question(pair.kind, truth, Row(pair.position, *text), against))
    return questions


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], int], ...] | None:
    """Two texts up to the last token in which they differ, and the first that does; None for equal texts and no text.

    Equal tokens at both ends are left out, since they do not show which of the texts is true.

    >>> contrast((5, 6, 7, 9), (5, 8, 8, 7, 9))
    (((5, 6), 1), ((5, 8, 8), 1))
    >>> contrast((5, 9), (5, 6, 9))
    (((5, 9), 1), ((5, 6, 9), 1))
    """
    if one == other or not one or not other:
        return None
    shortest = min(len(one), len(other))
    start = next((place for place in range(shortest) if one[place] != other[place]), shortest - 1)
    alike = 0
    while alike < shortest - start - 1 and one[-1 - alike] == other[-1 - alike]:
        alike += 1
    return (one[: len(one) - alike], start), (other[: len(other) - alike], start)


def false_caption(pair: Pair, source: Source, samples: Sequence[Sample], objects: Objects) -> str | None:
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


def _text_batch(rows: Sequence[Row], pad_id: int) -> Batch:
    """``input_ids [B, L]`` and ``labels [B, L]``, padded to the right; labels only where the texts differ."""
    batch = collate([torch.tensor(one.tokens) for one in rows], pad_id)
    for labels, one in zip(batch["labels"], rows, strict=True):
        labels[: one.start] = IGNORE
    return batch


def tally(answers: Sequence[tuple[str, bool, bool]]) -> dict[str, Any]:
    """The figures of POPE, where yes is the positive class.

    Args:
        answers: kind, truth and answer of each question, at least one.

    Returns:
        Shares in [0, 1]: ``accuracy`` of right answers, ``precision`` of yes answers that are right, ``recall`` of yes
        truths that are answered yes, ``f1`` their harmonic mean (each 0 where its denominator is), ``yes_ratio`` of yes
        answers; ``questions``, their number; and the accuracy ``by_kind``.

    >>> random = [("random", True, True), ("random", False, True)]
    >>> found = tally([*random, ("popular", True, True), ("popular", False, False)])
    >>> found["accuracy"], found["recall"], found["f1"], found["yes_ratio"], found["by_kind"]
    (0.75, 1.0, 0.8, 0.75, {'random': 0.5, 'popular': 1.0})
    """
    hits = sum(truth and answer for _, truth, answer in answers)
    yes, true = sum(answer for *_, answer in answers), sum(truth for _, truth, _ in answers)
    kinds = {kind: [truth == answer for one, truth, answer in answers if one == kind] for kind in KINDS}
    return {
        "accuracy": sum(truth == answer for _, truth, answer in answers) / len(answers),
        "precision": hits / max(1, yes),
        "recall": hits / max(1, true),
        "f1": 2 * hits / max(1, yes + true),
        "yes_ratio": yes / len(answers),
        "questions": len(answers),
        "by_kind": {kind: sum(right) / len(right) for kind, right in kinds.items() if right},
    }
