"""Clients differ by the quality of captions: on some of them captions do not say what the pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, check_choice
from fedcmp.seeding import numpy_rng

CORRUPTIONS = ("shuffled", "truncated", "template", "foreign")
TEMPLATE = "a picture"
"""What ``template`` says of every picture."""


@dataclass
class QualityConfig:
    """For `quality`: whose captions are corrupted, and how."""

    clients: float = 0.5
    """Share of the clients that have corrupted captions, in [0, 1]; above 0 at least one does."""
    captions: float = 1.0
    """Share of their captions that is corrupted, in [0, 1]."""
    kind: str = "shuffled"
    """`shuffled` (another caption of the same client), `truncated` (its first third), `template` (the same sentence for
    all) or `foreign` (a caption of another client)."""

    def validate(self, prefix: str) -> None:
        for key in ("clients", "captions"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{prefix}.{key} must be in [0, 1], got {getattr(self, key)}")
        check_choice(f"{prefix}.kind", self.kind, CORRUPTIONS)

    def knobs(self) -> dict[str, object]:
        """The settings that act: all."""
        return dict(vars(self))


class Corrupted(NamedTuple):
    """Samples as their owners see them."""

    samples: list[Sample]
    """All of them, in their old order."""
    positions: tuple[tuple[int, ...], ...]
    """Whose caption was corrupted, by client."""


def corrupt(samples: Sequence[Sample], clients: Sequence[Sequence[int]], config: QualityConfig, seed: int) -> Corrupted:
    """Corrupts captions.

    A shuffled or foreign caption is not the text that it replaces wherever that can be: where two thirds of a client's
    captions are one sentence, a third of them must keep it. They count as corrupted all the same.

    Args:
        samples: the training samples.
        clients: the positions of each client.
        config: how many, and how.
        seed: the run's seed.
    """
    num_clients = len(clients)
    num_hurt = min(num_clients, max(1, round(config.clients * num_clients))) if config.clients else 0
    changed, positions = list(samples), [tuple[int, ...]()] * num_clients
    owners = np.full(len(samples), -1)
    for client, own in enumerate(clients):
        owners[list(own)] = client
    by_id = np.array(sorted(range(len(samples)), key=lambda position: samples[position].id))
    for client in numpy_rng(seed, "quality").choice(num_clients, num_hurt, replace=False).tolist():
        rng = numpy_rng(seed, "quality", client)
        mine = by_id[owners[by_id] == client]
        chosen = rng.permutation(len(mine))[: round(config.captions * len(mine))]
        places = mine[np.sort(chosen)].tolist()
        captions = [samples[position].caption for position in places]
        if config.kind == "foreign":
            others = by_id[(owners[by_id] >= 0) & (owners[by_id] != client)]
            captions = _foreign(captions, samples, others, rng)
        elif config.kind == "shuffled":
            captions = _shuffled(captions, rng)
        elif config.kind == "truncated":
            captions = [" ".join(words[: max(1, len(words) // 3)]) for words in map(str.split, captions)]
        else:
            captions = [TEMPLATE] * len(captions)
        for position, caption in zip(places, captions, strict=True):
            changed[position] = replace(samples[position], caption=caption)
        positions[client] = tuple(sorted(places))
    return Corrupted(changed, tuple(positions))


def _shuffled(captions: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A random permutation, changed by swaps until no caption takes the place of an equal one, if that can be."""
    number = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    texts = np.array([number[caption] for caption in captions], np.int64)
    order = rng.permutation(len(texts))
    stuck: set[int] = set()
    for place in np.flatnonzero(texts[order] == texts).tolist():
        text = int(texts[place])
        if text in stuck or texts[order[place]] != text:
            continue  # no swap helps, or an earlier one did
        partners = np.flatnonzero((texts != text) & (texts[order] != text))
        if not len(partners):
            stuck.add(text)
            continue
        other = int(rng.choice(partners))
        order[[place, other]] = order[[other, place]]
    return [captions[place] for place in order]


def _foreign(
    captions: Sequence[str], samples: Sequence[Sample], others: np.ndarray, rng: np.random.Generator, tries: int = 16
) -> list[str]:
    """Captions of the samples at ``others``, drawn once each while there are enough, and again where they are equal."""
    count = len(captions)
    drawn = [samples[position].caption for position in rng.choice(others, count, replace=count > len(others))]
    for place, caption in enumerate(captions):
        for _ in range(tries):
            if drawn[place] != caption:
                break
            drawn[place] = samples[int(rng.choice(others))].caption
    return drawn
