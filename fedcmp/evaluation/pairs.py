"""For yes/no questions: an object that a picture shows, and one that it does not, in the manner of POPE.

Li, Du, Zhou, Wang, Zhao, Wen, "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023,
arXiv 2305.10355. The absent object is chosen in three ways among those that the picture does not show:

* ``random``: any;
* ``popular``: the one that most pictures of the domain show;
* ``adversarial``: the one that is easiest to mistake.

Differs from the paper: objects are those of the picture's own domain. There, "adversarial" is what most often stands
beside the objects shown; pictures with one label each have no such statistics, so it is the object whose pictures look
most alike: its mean frozen feature is the nearest to the picture's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.evaluation.sharing import spread
from fedcmp.seeding import numpy_rng

KINDS = ("random", "popular", "adversarial")
"""How the absent object is chosen."""


class Pair(NamedTuple):
    """Two objects to ask about."""

    position: int
    """Which sample."""
    kind: str
    """One of KINDS."""
    present: str
    """An object that its picture shows."""
    absent: str
    """One that it does not."""


def choose_pairs(
    ids: Sequence[str], objects: Sequence[tuple[str, ...]], domains: Sequence[str], features: Tensor, limit: int
) -> list[Pair]:
    """Three pairs, one of each kind, for up to ``limit`` samples, spread over the domains.

    A sample can be asked about if its objects are known and some other sample of its domain shows something else. The
    choice depends on the samples alone, not on a run's seed: all runs on the same samples answer the same questions.

    Args:
        ids: the samples' ids, n of them; they are the random stream, and their hashes the order.
        objects: what each picture shows, by name; empty where nobody says.
        domains: the domain of each.
        features: ``[n, d]`` what the frozen tower sees in each, averaged over its tokens.
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
    open_to = [p for p, shown in enumerate(objects) if shown and members[domains[p]].keys() - set(shown)]
    pairs = []
    chosen = spread([domains[p] for p in open_to], [ids[p] for p in open_to], limit)
    for position in (open_to[place] for place in chosen):
        shown, by_name = objects[position], members[domains[position]]
        absent = sorted(by_name.keys() - set(shown))  # of equals the first by name
        near = torch.stack([centres[domains[position]][name] for name in absent]) - values[position]
        picked = {
            "random": absent[int(numpy_rng(0, "probe", ids[position]).integers(len(absent)))],
            "popular": max(absent, key=lambda name: len(by_name[name])),
            "adversarial": absent[int(near.pow(2).sum(1).argmin())],
        }
        for number, kind in enumerate(KINDS):
            pairs.append(Pair(position, kind, shown[number % len(shown)], picked[kind]))
    return pairs
