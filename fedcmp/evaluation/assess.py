"""All that is reported about a projector on the test samples: the ``test`` part of summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.distributed.team import Team
from fedcmp.evaluation.captions import caption
from fedcmp.evaluation.cider import cider_d
from fedcmp.evaluation.config import EvaluationConfig
from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.evaluation.losses import EvalData, quality, score_samples
from fedcmp.evaluation.probe import probe
from fedcmp.evaluation.sharing import spread
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment


@dataclass(frozen=True)
class HeldOut:
    """Held-out samples with all that is known about them."""

    data: EvalData
    samples: Sequence[Sample]
    """The sample of each position."""
    source: Source
    lowercase: bool = False
    """Captions are read in lower case."""
    max_tokens: int = 64
    """Longer captions are cut."""


class Captioned(NamedTuple):
    """A picture that was captioned."""

    sample: Sample
    generated: str


class Captions(NamedTuple):
    """Captioned pictures, and how good their captions are."""

    captioned: list[Captioned]
    scores: dict[str, Any]
    """``cider`` (CIDEr-D; None: no captions) and what the source can tell."""


def measure(
    module: ProjectorAlignment, params: Params, held_out: HeldOut, settings: EvaluationConfig, team: Team | None = None
) -> dict[str, Any]:
    """Losses with right and with shuffled pictures, token accuracy, and answers about objects; all but captions.

    Returns:
        What ``quality`` tells, ``cider`` (None: see ``caption_pictures``) and ``probe`` (None where nothing is asked).
    """
    right = score_samples(module, params, held_out.data, team=team)
    shuffled = score_samples(module, params, held_out.data, shuffle_pictures=True, team=team)
    answers = None
    if settings.probe != "off" and settings.questions:
        answers = probe(
            module,
            params,
            held_out.data,
            held_out.samples,
            held_out.source,
            form=settings.probe,
            limit=settings.questions,
            lowercase=held_out.lowercase,
            max_tokens=held_out.max_tokens,
            team=team,
        )
    return {**quality(right, shuffled, held_out.data), "cider": None, "probe": answers}


def mean_measure(measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of what several projectors got from ``measure`` on the same samples; the worst domain is its own.

    >>> one = {"domains": {"a": 1.0, "b": 2.0}, "worst_domain": {"name": "b", "loss": 2.0}, "probe": {"questions": 6}}
    >>> other = {"domains": {"a": 4.0, "b": 3.0}, "worst_domain": {"name": "a", "loss": 4.0}, "probe": {"questions": 6}}
    >>> mean_measure([one, other])
    {'domains': {'a': 2.5, 'b': 2.5}, 'worst_domain': {'name': 'a', 'loss': 2.5}, 'probe': {'questions': 6}}
    """
    means: dict[str, Any] = _mean(measures)
    name, loss = max(means["domains"].items(), key=lambda item: item[1])
    found = {**means, "worst_domain": {"name": name, "loss": loss}}
    return {**found, "ignores_pictures": ignores_pictures(found)} if "ignores_pictures" in found else found


def _mean(values: Sequence[Any]) -> Any:
    """Number by number; what is alike everywhere (counts, words, None) stays as it is."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([one[key] for one in values]) for key in first}
    if isinstance(first, float):
        return sum(values) / len(values)
    return first


def caption_pictures(
    module: ProjectorAlignment, params: Params, held_out: HeldOut, settings: EvaluationConfig, team: Team | None = None
) -> Captions:
    """Greedy captions of ``settings.captions`` pictures, spread over the domains, and at least of those to be shown.

    The references of a picture are all its captions, those of other held-out samples that show it among them; they are
    also the corpus from which CIDEr-D counts how common words are.
    """
    samples = held_out.samples
    pictures = held_out.data.shared
    firsts = [samples[group[0]] for group in pictures]
    count = max(settings.captions, settings.examples)
    places = spread([one.domain for one in firsts], [one.id for one in firsts], count)
    chosen = [pictures[place] for place in places]
    texts = caption(module, params, held_out.data, [group[0] for group in chosen], settings.max_tokens, team)
    captioned = [Captioned(samples[group[0]], text) for group, text in zip(chosen, texts, strict=True)]
    scored = captioned[: settings.captions]
    if not scored:
        return Captions(captioned, {"cider": None})
    said = [one.generated for one in scored]
    references = [[text for position in group for text in _captions(samples[position])] for group in chosen]
    told = held_out.source.score(said, [one.sample for one in scored])
    return Captions(captioned, {"cider": cider_d(said, references[: len(said)]).score, **told})


def _captions(sample: Sample) -> tuple[str, ...]:
    return sample.captions or (sample.caption,)
