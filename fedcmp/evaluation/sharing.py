"""Work that the ranks of a team share: the same batches, and so the same bits, for any number of ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from fedcmp.distributed.team import Team, leads
from fedcmp.seeding import derive

Key = TypeVar("Key", bound=Hashable)


def score_rows(
    team: Team, num_rows: int, batch_size: int, score: Callable[[range], Tensor], num_scores: int = 1
) -> Tensor:
    """Scores of all rows, on every rank.

    Each row is scored by one worker and added to zeros, so that the sum over ranks is exact.

    Args:
        team: the ranks.
        num_rows: n.
        batch_size: rows that are scored together, by any rank.
        score: some rows in, their scores ``[S, rows]`` out.
        num_scores: S.

    Returns:
        ``[S, n]`` float64.
    """
    found = torch.zeros(num_scores, num_rows, dtype=torch.float64, device=team.device)
    for rows in _own_batches(team, num_rows, batch_size):
        scores = score(rows)
        if _reports(team):
            found[:, rows.start : rows.stop] = scores
    return team.total(found)


def write_rows(team: Team, num_rows: int, batch_size: int, write: Callable[[range], list[str]]) -> list[str]:
    """The texts of all rows in their order, on every rank; arguments as ``score_rows``."""
    mine = [[rows.start, write(rows)] for rows in _own_batches(team, num_rows, batch_size)]
    reported = team.collect(mine if _reports(team) else [])
    return [text for _, texts in sorted(batch for part in reported for batch in part) for text in texts]


def _own_batches(team: Team, num_rows: int, batch_size: int) -> Iterator[range]:
    mine, workers = team.rank, team.topology.world_size
    if team.in_step:  # a group is one worker
        mine, workers = team.topology.group(team.rank), team.topology.num_groups
    for begin in range(mine * batch_size, num_rows, workers * batch_size):
        yield range(begin, min(begin + batch_size, num_rows))


def _reports(team: Team) -> bool:
    return leads(team) or not team.in_step


def grouped(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """The positions of each key, in the order of its first.

    >>> grouped("aba")
    {'a': [0, 2], 'b': [1]}
    """
    groups = defaultdict[Key, list[int]](list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    return dict(groups)


def mixed(domains: Sequence[str], names: Sequence[str]) -> dict[str, list[int]]:
    """The positions of each domain, ordered by a hash of their names: files are often sorted by what pictures show.

    No seed enters: all runs on the same samples have the same order. Positions of one name are neighbours.

    >>> mixed(["a", "b", "a", "a"], ["cat-4", "cat-7", "cat-9", "dog-1"])
    {'a': [2, 3, 0], 'b': [1]}
    """
    hashes = [derive(0, "mixed", name) for name in names]
    return {domain: sorted(members, key=hashes.__getitem__) for domain, members in grouped(domains).items()}


def spread(domains: Sequence[str], names: Sequence[str], count: int) -> list[int]:
    """``count`` positions, one domain after the other in turn, those of each as ``mixed``.

    >>> spread(["a", "b", "a", "a"], ["cat-4", "cat-7", "cat-9", "dog-1"], 3)
    [2, 1, 3]
    """
    turns = zip_longest(*mixed(domains, names).values())
    return [position for turn in turns for position in turn if position is not None][:count]
