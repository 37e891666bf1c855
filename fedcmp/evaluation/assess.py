"""All that is reported about a projector on the test samples (``test`` in summary.json), and its captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fedcmp.data.images import MAX_PIXELS, Picture, read_picture
from fedcmp.data.records import Sample
from fedcmp.distributed.team import Solo, Team
from fedcmp.evaluation.cider import cider_d
from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.evaluation.losses import HeldOut, Scored, quality, score_samples
from fedcmp.evaluation.probe import probe
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.evaluation.sharing import spread, write_rows
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment


class Captioned(NamedTuple):
    """A picture that was captioned."""

    sample: Sample
    generated: str


class Captions(NamedTuple):
    """Captioned pictures, and ``cider`` (CIDEr-D; None: no captions) and the scores of the source."""

    captioned: list[Captioned]
    scores: dict[str, Any]


def measure(
    module: ProjectorAlignment, params: Params, held_out: HeldOut, settings: EvaluationConfig, team: Team | None = None
) -> tuple[dict[str, Any], Scored]:
    """Losses with right and with shuffled pictures, token accuracy, and answers about objects; all but captions.

    Returns:
        The keys of ``quality``, ``cider`` (None: see ``caption_pictures``) and ``probe`` (None where nothing is asked);
        and the losses of each sample.
    """
    data = held_out.data
    right = score_samples(module, params, data, team=team)
    shuffled = score_samples(module, params, data, shuffle_pictures=True, team=team)
    answers = probe(module, params, held_out, settings, team) if settings.probe != "off" else None
    pictures = {position: number for number, group in enumerate(data.shared) for position in group}
    places = [pictures[position] for position in range(len(data.domains))]
    scored = Scored(list(data.domains), places, right[1].tolist(), right[0].tolist(), shuffled[0].tolist())
    return {**quality(right, shuffled, data), "cider": None, "probe": answers}, scored


def mean_measure(measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of what several projectors got from ``measure`` on the same samples; the worst domain is its own."""
    means: dict[str, Any] = _mean(measures)
    name, loss = max(means["domains"].items(), key=lambda item: item[1])
    found = {**means, "worst_domain": {"name": name, "loss": loss}}
    if found.pop("ignores_pictures", None) is None:
        return found
    return {**found, "ignores_pictures": ignores_pictures(found)}


def _mean(values: Sequence[Any]) -> Any:
    """Number by number; what is equal everywhere (counts, words, None) is kept."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([one[key] for one in values]) for key in first}
    return sum(values) / len(values) if isinstance(first, float) else first


@torch.no_grad()
def caption_pictures(
    module: ProjectorAlignment, params: Params, held_out: HeldOut, settings: EvaluationConfig, team: Team | None = None
) -> Captions:
    """Greedy captions of ``settings.captions`` pictures, spread over the domains, and at least of those to be shown.

    The references of a picture are all its captions, including those of other held-out samples that show it; CIDEr-D
    counts in them how common words are. The module's projector becomes ``params``. The number of ranks changes nothing.
    """
    samples, data, pictures = held_out.samples, held_out.data, held_out.data.shared
    firsts = [samples[group[0]] for group in pictures]
    count = max(settings.captions, settings.examples)
    chosen = [pictures[place] for place in spread([one.domain for one in firsts], [one.id for one in firsts], count)]
    module.eval()
    module.projector.load(params)

    def write(rows: range) -> list[str]:
        return module.captions(data.fetch([chosen[row][0] for row in rows]), settings.max_tokens)

    texts = write_rows(team or Solo(), len(chosen), data.batch_size, write)
    captioned = [Captioned(samples[group[0]], text) for group, text in zip(chosen, texts, strict=True)]
    scored = captioned[: settings.captions]
    if not scored:
        return Captions(captioned, {"cider": None})
    found = [one.generated for one in scored]
    references = [
        [text for position in group for text in samples[position].captions or (samples[position].caption,)]
        for group in chosen[: len(found)]
    ]
    own = held_out.source.score(found, [one.sample for one in scored])
    return Captions(captioned, {"cider": cider_d(found, references).score, **own})


def caption_loose(
    module: ProjectorAlignment,
    pictures: Sequence[Picture],
    max_tokens: int = 48,
    batch_size: int = 64,
    max_pixels: int = MAX_PIXELS,
) -> list[str]:
    """Greedy captions of pictures of no data set by the module's own projector, ``batch_size`` at a time.

    Raises:
        DataError: a picture cannot be read, or training would refuse it.
    """
    assert module.tower is not None, "without a tower there are no features"
    device, captions = next(module.projector.parameters()).device, list[str]()
    for begin in range(0, len(pictures), batch_size):
        part = enumerate(pictures[begin : begin + batch_size], begin)
        pixels = module.tower.preprocess([read_picture(picture, place, max_pixels) for place, picture in part])
        captions += module.captions({"pixels": pixels.to(device)}, max_tokens)
    return captions
