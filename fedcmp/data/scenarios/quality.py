"""How good the captions are: on some clients, captions do not say what the pictures show. The pictures stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.config import QualityConfig
from fedcmp.seeding import numpy_rng

TEMPLATE = "a picture"
"""What ``template`` says of every picture."""


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
    hurt = set(numpy_rng(seed, "quality").choice(num_clients, num_hurt, replace=False).tolist())
    changed, positions = list(samples), []
    owners = np.full(len(samples), -1)
    for client, own in enumerate(clients):
        owners[list(own)] = client
    by_id = np.array(sorted(range(len(samples)), key=lambda position: samples[position].id))
    for client in range(num_clients):
        if client not in hurt:
            positions.append(())
            continue
        rng = numpy_rng(seed, "quality", client)
        mine = by_id[owners[by_id] == client]
        chosen = rng.permutation(len(mine))[: round(config.captions * len(mine))]
        places = mine[np.sort(chosen)].tolist()
        captions = [samples[position].caption for position in places]
        if config.kind == "foreign":
            others = by_id[(owners[by_id] >= 0) & (owners[by_id] != client)]
            captions = _foreign(captions, samples, others, rng)
        else:
            hurts = {"shuffled": _shuffled, "truncated": _truncated, "template": _template}
            captions = hurts[config.kind](captions, rng)
        for position, caption in zip(places, captions, strict=True):
            changed[position] = replace(samples[position], caption=caption)
        positions.append(tuple(sorted(places)))
    return Corrupted(changed, tuple(positions))


def _truncated(captions: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The first third of the words, at least one."""
    words = [caption.split() for caption in captions]
    return [" ".join(one[: max(1, len(one) // 3)]) for one in words]


def _template(captions: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [TEMPLATE] * len(captions)


def _shuffled(captions: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A random permutation, mended by swaps until no caption stands where an equal one stood, if that can be."""
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
