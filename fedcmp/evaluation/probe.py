"""Yes/no questions about objects: does the model say yes where the object is there, and no where it is not?

Each picture gets six questions, three times one about an object that it shows and one about an object that it does not
(``pairs.py``), so that yes and no are right equally often. How they are asked and answered: ``questions.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.distributed.failures import attempt
from fedcmp.distributed.team import Solo, Team, is_server
from fedcmp.evaluation.losses import EvalData, images_of
from fedcmp.evaluation.pairs import KINDS, Pair, choose_pairs
from fedcmp.evaluation.questions import ask, state
from fedcmp.evaluation.sharing import score_rows
from fedcmp.evaluation.statements import encoder, text_batch
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment


@torch.no_grad()
def probe(
    module: ProjectorAlignment,
    params: Params,
    data: EvalData,
    samples: Sequence[Sample],
    source: Source,
    *,
    form: str,
    limit: int,
    lowercase: bool = False,
    max_tokens: int = 64,
    team: Team | None = None,
) -> dict[str, Any] | None:
    """What the projector ``params`` answers about the objects of held-out pictures.

    Args:
        module: the frozen models.
        params: the projector.
        data: the held-out samples.
        samples: the same, with their captions.
        source: knows what they show.
        form: ``"statement"`` or ``"question"``.
        limit: pictures that are asked about, at most.
        lowercase, max_tokens: how captions become tokens; questions are not cut.
        team: ranks that share the rows; their number does not change the result. None: this one alone.

    Returns:
        See ``tally``; None where there is nothing to ask.
    """
    team = team or Solo()
    module.eval()
    objects = objects_shown([source.objects(sample) for sample in samples], data.shared)
    pairs, error = attempt(lambda: _pairs(module, data, samples, objects, limit) if is_server(team) else [])
    team.agree(error)
    # the server's choice counts: features may differ in their last bits from machine to machine
    told: list[tuple[int, str, str, str]] = [(*pair,) for pair in pairs or []]
    shared = [Pair(*pair) for pair in team.share(told)]
    llm = module.llm
    cut = None if form == "question" else max_tokens  # the answer stands last
    encode = encoder(llm.tokenizer, llm.end_id, lowercase=lowercase, max_tokens=cut)
    questions = ask(shared, encode) if form == "question" else state(shared, samples, objects, source, encode)
    if not questions:
        return None
    rows = list(dict.fromkeys(row for one in questions for group in ((one.row,), *one.against) for row in group))

    def score(places: range) -> torch.Tensor:
        chunk = [rows[place] for place in places]
        images = images_of(data, [row.position for row in chunk])
        device = next(iter(images.values())).device
        texts = text_batch([row.statement for row in chunk], llm.pad_id)
        nll, _ = module.nll(images | {name: value.to(device) for name, value in texts.items()}, params)
        return nll.double()[None]

    losses = dict(zip(rows, score_rows(team, len(rows), data.batch_size, score)[0].tolist(), strict=True))
    return tally([(one.kind, one.truth, one.answer(losses)) for one in questions])


def objects_shown(objects: Sequence[tuple[str, ...]], pictures: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """What each picture shows, all its samples together, at the first of them.

    The others show nothing, so that no picture is asked about twice, counted twice, or held against itself.

    Args:
        objects: what each sample says that its picture shows.
        pictures: the samples of each picture.

    >>> objects_shown([(), ("cat",), ("dog", "cat"), ("fox",)], [[0, 2], [1], [3]])
    [('dog', 'cat'), ('cat',), (), ('fox',)]
    """
    shown: list[tuple[str, ...]] = [()] * len(objects)
    for first, *others in pictures:
        named = (name for position in (first, *others) for name in objects[position])
        shown[first] = tuple(dict.fromkeys(named)) if others else objects[first]
    return shown


def _pairs(
    module: ProjectorAlignment,
    data: EvalData,
    samples: Sequence[Sample],
    objects: Sequence[tuple[str, ...]],
    limit: int,
) -> list[Pair]:
    means = []
    for begin in range(0, len(samples), data.batch_size):
        batch = data.fetch(list(range(begin, min(begin + data.batch_size, len(samples)))))
        means.append(module.features(batch).float().mean(1).cpu())
    return choose_pairs([sample.id for sample in samples], objects, data.domains, torch.cat(means), limit)


def tally(answers: Sequence[tuple[str, bool, bool]]) -> dict[str, Any]:
    """The figures of POPE (arXiv 2305.10355), where yes is the positive class.

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
