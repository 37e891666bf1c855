"""Loss per token and token accuracy by domain, their mean and worst, and the use of the pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.distributed.team import Solo, Team
from fedcmp.evaluation.image_use import ignores_pictures, standard_error
from fedcmp.evaluation.sharing import grouped, mixed, score_rows
from fedcmp.types import Batch, Fetch, Params, Scalars

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment


@dataclass(frozen=True)
class EvalData:
    """Held-out samples by position 0 .. n-1."""

    fetch: Fetch
    """Positions to a batch."""
    domains: tuple[str, ...]
    """The domain of each position."""
    batch_size: int = 64
    """Rows of one forward pass."""
    order: tuple[int, ...] | None = None
    """All positions, neighbours of which share a forward pass; None: by number. Captions of one length together need
    less padding; results depend on it by rounding only."""
    pictures: tuple[str, ...] | None = None
    """The name of each position's picture, the same where samples of a domain share one; None: each has its own."""

    @property
    def shared(self) -> list[list[int]]:
        """The positions that show each picture, in the order of their first."""
        pictures: Sequence[str | int] = range(len(self.domains)) if self.pictures is None else self.pictures
        return list(grouped(zip(self.domains, pictures, strict=True)).values())


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


class Scored(NamedTuple):
    """Losses of each held-out sample, by which two projectors are compared on the same samples."""

    domain: list[str]
    picture: list[int]
    """Samples of a domain with one number show one picture."""
    tokens: list[float]
    loss: list[float]
    """Summed over the tokens, nats."""
    shuffled: list[float]
    """The same with another picture of the domain."""

    def per_token(self, nats: Sequence[float], domains: Collection[str]) -> tuple[float | None, float | None]:
        """The mean over ``domains`` of ``nats`` of each sample per token, and its standard error over pictures.

        None: there are no samples, or a domain has a single picture.
        """
        kept = [place for place, name in enumerate(self.domain) if name in domains]
        if not kept:
            return None, None
        rises, tokens = [nats[place] for place in kept], [self.tokens[place] for place in kept]
        names, pictures = [self.domain[place] for place in kept], [self.picture[place] for place in kept]
        same = list(grouped(zip(names, pictures, strict=True)).values())
        sums = sums_by_domain(torch.tensor([rises, tokens, tokens], dtype=torch.float64), names)
        return of_sums(sums).loss, standard_error(rises, tokens, same, names)


class Evaluation(NamedTuple):
    """Losses in nats per token, and token accuracy."""

    loss: float
    """Mean over domains: each domain counts alike, whatever its size."""
    by_domain: dict[str, float]
    accuracy_by_domain: dict[str, float] | None = None
    """Share of tokens that are the likeliest after the true ones before them; None: not in a record."""

    @property
    def worst(self) -> tuple[str, float]:
        """The domain with the highest loss, and that loss."""
        return max(self.by_domain.items(), key=lambda item: item[1])

    @property
    def token_accuracy(self) -> float | None:
        """Mean over domains, in [0, 1]."""
        return None if self.accuracy_by_domain is None else mean(self.accuracy_by_domain)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Evaluation:
        """From the record that ``scalars`` wrote."""
        prefix = "val/loss/"
        named = {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
        return cls(record["val/loss"], named)

    def scalars(self, prefix: str = "val") -> Scalars:
        """The record of metrics.jsonl."""
        named = {f"{prefix}/loss/{domain}": loss for domain, loss in self.by_domain.items()}
        return {f"{prefix}/loss": self.loss, **named, f"{prefix}/worst_domain": self.worst[1]}


def evaluate(module: ProjectorAlignment, params: Params, data: EvalData, team: Team | None = None) -> Evaluation:
    """Loss per token and token accuracy of the projector ``params``; arguments as ``score_samples``."""
    return average(score_samples(module, params, data, team=team), data.domains)


@torch.no_grad()  # not inference mode: layers that were gathered in it could not train afterwards
def score_samples(
    module: ProjectorAlignment,
    params: Params,
    data: EvalData,
    *,
    shuffle_pictures: bool = False,
    team: Team | None = None,
) -> torch.Tensor:
    """Summed loss in nats, tokens, and tokens guessed right of each sample, by position: ``[3, n]`` float64.

    Args:
        params: the projector to evaluate.
        shuffle_pictures: give each caption another picture of its domain.
        team: ranks that share the batches; their number does not change the result.
    """
    module.eval()
    count = len(data.domains)
    names = data.pictures or [str(position) for position in range(count)]
    pictures = other_pictures(data.domains, names) if shuffle_pictures else None
    order = list(data.order or range(count))

    def score(rows: range) -> torch.Tensor:
        positions = order[rows.start : rows.stop]
        batch = data.fetch(positions)
        if pictures is not None:
            batch |= images_of(data, [pictures[position] for position in positions])
        return module.scores(batch, params)

    scored = score_rows(team or Solo(), count, data.batch_size, score, 3)
    found = torch.empty_like(scored)
    found[:, order] = scored
    return found


def average(scored: torch.Tensor, domains: Sequence[str]) -> Evaluation:
    """Per token and domain, from the scores of each sample, ``[3, n]``."""
    return of_sums(sums_by_domain(scored, domains))


def sums_by_domain(scored: torch.Tensor, domains: Sequence[str]) -> dict[str, list[float]]:
    """The sums over each domain's samples of their three scores, ``[3, n]``."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for domain, *scores in zip(domains, *scored.tolist(), strict=True):
        sums[domain] = [total + one for total, one in zip(sums[domain], scores, strict=True)]
    return dict(sums)


def of_sums(sums: Mapping[str, Sequence[float]]) -> Evaluation:
    """Per token and domain, from ``sums_by_domain``."""
    by_domain, accuracy = ({name: sums[name][row] / sums[name][1] for name in sorted(sums)} for row in (0, 2))
    return Evaluation(mean(by_domain), by_domain, accuracy)


def images_of(data: EvalData, positions: Sequence[int]) -> Batch:
    """The pictures of samples, without their captions: ``features`` or ``pixels``."""
    return {key: value for key, value in data.fetch(list(positions)).items() if key in ("features", "pixels")}


def mean(by_domain: Mapping[str, float]) -> float:
    """The mean in which each domain counts alike."""
    return sum(by_domain.values()) / len(by_domain)


def own_and_all(by_domain: Mapping[str, float], domains: Collection[str]) -> dict[str, float | None]:
    """The mean loss over a client's ``domains``, those without held-out samples left out, and over all.

    >>> own_and_all({"a": 1.0, "b": 3.0, "c": 5.0}, ["a", "b", "x"]), own_and_all({"a": 1.0}, ["x"])
    ({'own': 2.0, 'all': 3.0}, {'own': None, 'all': 1.0})
    """
    held = [loss for domain, loss in by_domain.items() if domain in domains]
    return {"own": sum(held) / len(held) if held else None, "all": mean(by_domain)}


def progress_made(
    start: Evaluation, end: Evaluation, best: float, records: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The part of the summary that says how far a run came on the validation samples; losses in nats per token.

    ``records`` are those of metrics.jsonl; the first with the ``best`` loss is its round (None: there is none).
    """
    best_round = next((one["round"] for one in records if one.get("val/loss") == best), None)
    return {
        "val/loss": {"start": start.loss, "end": end.loss, "best": min(best, end.loss), "best_round": best_round},
        "val/domains": {name: {"start": start.by_domain[name], "end": end.by_domain[name]} for name in end.by_domain},
    }


def quality(right: torch.Tensor, shuffled: torch.Tensor, data: EvalData) -> dict[str, Any]:
    """How good a projector is on samples that chose nothing, from the scores of each with its own and with another
    picture, ``[3, n]``; losses in nats per token."""
    rises = (shuffled[0] - right[0]).tolist()
    error = standard_error(rises, right[1].tolist(), data.shared, data.domains)
    return quality_of(average(right, data.domains), average(shuffled, data.domains), error)


def quality_of(right: Evaluation, shuffled: Evaluation, error: float | None = None) -> dict[str, Any]:
    """The same from evaluations with the right and with exchanged pictures, and the standard error of image use."""
    domain, loss = right.worst
    found = {
        "loss": right.loss,
        "domains": right.by_domain,
        "worst_domain": {"name": domain, "loss": loss},
        "loss_shuffled": shuffled.loss,
        "image_use": shuffled.loss - right.loss,
        "image_use_se": error,
        "token_accuracy": right.token_accuracy,
        "token_accuracy_domains": right.accuracy_by_domain,
    }
    return {**found, "ignores_pictures": ignores_pictures(found)}


def other_pictures(domains: Sequence[str], names: Sequence[str]) -> list[int]:
    """For each sample one of its domain with another picture: half-way round the domain, mixed by a hash.

    No sample keeps its picture unless more than half of its domain share it. Each picture is given as often as it has
    captions, and no seed enters: all projectors are measured with the same ones.

    >>> other_pictures(["a", "a", "b", "a", "b", "a"], ["one.png", "two.png", "x.png", "one.png", "y.png", "two.png"])
    [1, 0, 4, 5, 2, 3]
    """
    others = [0] * len(domains)
    for group in mixed(domains, names).values():
        shift = max(1, len(group) // 2)
        for place, position in enumerate(group):
            others[position] = group[(place + shift) % len(group)]
    return others
