"""Yes/no questions about objects: does the model say yes where the object is there, and no where it is not?

Each picture gets six questions: three times one about an object that it shows and one about an object that it does not,
so that yes and no are right equally often. ``questions.py`` asks and answers them. After POPE: Li, Du, Zhou, Wang,
Zhao, Wen, "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023, arXiv 2305.10355. The absent
object is chosen in three ways among those that the picture does not show:

* ``random``: any;
* ``popular``: the one that most pictures of the domain show;
* ``adversarial``: the one that is easiest to mistake.

Differs from the paper: objects are those of the picture's own domain. There, "adversarial" is the one that most often
occurs with the objects shown; pictures with one label each have no such statistics, so it is the object whose mean
frozen feature is the nearest to the picture's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedcmp.data.records import Sample
from fedcmp.distributed.messages import attempt
from fedcmp.distributed.team import Solo, Team, is_server
from fedcmp.evaluation.losses import EvalData, HeldOut, images_of
from fedcmp.evaluation.questions import Pair, ask, encoder, state, text_batch
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.evaluation.sharing import score_rows, spread
from fedcmp.seeding import numpy_rng
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment

KINDS = ("random", "popular", "adversarial")
"""How the absent object is chosen."""


@torch.no_grad()
def probe(
    module: ProjectorAlignment, params: Params, held_out: HeldOut, settings: EvaluationConfig, team: Team | None = None
) -> dict[str, Any] | None:
    """What the projector ``params`` answers about the objects of held-out pictures.

    Args:
        module: the frozen models.
        params: the projector.
        held_out: the held-out samples.
        settings: the form of the questions, and how many pictures are asked about at most.
        team: ranks that share the rows; their number does not change the result. None: this one alone.

    Returns:
        See ``tally``; None where there is nothing to ask.
    """
    team = team or Solo()
    module.eval()
    data, samples, source, llm = held_out.data, held_out.samples, held_out.source, module.llm
    objects = objects_shown([source.objects(sample) for sample in samples], data.shared)
    asks = settings.questions if is_server(team) else 0
    pairs, error = attempt(lambda: _pairs(module, data, samples, objects, asks) if asks else [])
    team.agree(error)
    # the server's choice counts: features may differ in their last bits from machine to machine
    plain: list[tuple[int, str, str, str]] = [(*pair,) for pair in pairs or []]
    shared = [Pair(*pair) for pair in team.share(plain)]
    in_words = settings.probe == "question"
    cut = None if in_words else held_out.max_tokens  # the answer comes last
    encode = encoder(llm.tokenizer, llm.end_id, lowercase=held_out.lowercase, max_tokens=cut)
    questions = ask(shared, encode) if in_words else state(shared, samples, objects, source, encode)
    if not questions:
        return None
    rows = list(dict.fromkeys(row for one in questions for group in ((one.row,), *one.against) for row in group))

    def score(places: range) -> Tensor:
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

    The others show nothing, so that no picture is asked about twice, counted twice, or compared with itself.

    Args:
        objects: what each sample says that its picture shows.
        pictures: the samples of each picture.

    >>> objects_shown([(), ("cat",), ("dog", "cat"), ("fox",)], [[0, 2], [1], [3]])
    [('dog', 'cat'), ('cat',), (), ('fox',)]
    """
    shown: list[tuple[str, ...]] = [()] * len(objects)
    for group in pictures:
        named = [name for position in group for name in objects[position]]
        shown[group[0]] = tuple(dict.fromkeys(named)) if len(group) > 1 else tuple(named)
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


def choose_pairs(
    ids: Sequence[str], objects: Sequence[tuple[str, ...]], domains: Sequence[str], features: Tensor, limit: int
) -> list[Pair]:
    """Three pairs, one of each kind, for up to ``limit`` samples, spread over the domains.

    A sample can be asked about if its objects are known and some other sample of its domain shows something else. The
    choice depends on the samples alone, not on a run's seed: all runs on the same samples answer the same questions.

    Args:
        ids: the samples' ids, n of them; they are the random stream, and their hashes the order.
        objects: what each picture shows, by name; empty where unknown.
        domains: the domain of each.
        features: ``[n, d]`` features of the frozen tower, averaged over their tokens.
        limit: samples, at most.
    """
    values = features.double()
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, (domain, shown) in enumerate(zip(domains, objects, strict=True)):
        for name in dict.fromkeys(shown):
            members[domain][name].append(position)
    centres = {
        domain: {name: values[shows].mean(0) for name, shows in sorted(by_name.items())}
        for domain, by_name in members.items()
    }
    askable = [place for place, shown in enumerate(objects) if shown and members[domains[place]].keys() - set(shown)]
    pairs = []
    for place in spread([domains[one] for one in askable], [ids[one] for one in askable], limit):
        position = askable[place]
        shown, by_name = objects[position], members[domains[position]]
        absent = sorted(by_name.keys() - set(shown))  # of equals the first by name
        near = torch.stack([centres[domains[position]][name] for name in absent]) - values[position]
        picked = {
            "random": absent[int(numpy_rng(0, "probe", ids[position]).integers(len(absent)))],
            "popular": max(absent, key=lambda name: len(by_name[name])),
            "adversarial": absent[int(near.pow(2).sum(1).argmin())],
        }
        pairs += [Pair(position, kind, shown[i % len(shown)], picked[kind]) for i, kind in enumerate(KINDS)]
    return pairs


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
