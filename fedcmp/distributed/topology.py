"""Who does what: W ranks are G groups of R ranks, and a round's waves are assigned to the groups. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedcmp.errors import ConfigError


class Topology(NamedTuple):
    """W ranks in G groups of R neighbours; the first rank of a group speaks for it, rank 0 is the server.

    >>> Topology(world_size=4, group_size=2).group(3), Topology(4, 2).place(3), Topology(4, 2).members(1)
    (1, 1, (2, 3))
    """

    world_size: int = 1
    """W."""
    group_size: int = 1
    """R."""

    @property
    def num_groups(self) -> int:
        """G."""
        return self.world_size // self.group_size

    def group(self, rank: int) -> int:
        """The group of a rank."""
        return rank // self.group_size

    def place(self, rank: int) -> int:
        """A rank's place in its group; 0 leads it."""
        return rank % self.group_size

    def members(self, group: int) -> tuple[int, ...]:
        """The ranks of a group."""
        return tuple(range(group * self.group_size, (group + 1) * self.group_size))


def make_topology(world_size: int, group_size: int) -> Topology:
    """Checks that groups fill the ranks.

    Raises:
        ConfigError: ``launch.group_size`` does not divide the number of ranks.

    >>> make_topology(4, 3)
    Traceback (most recent call last):
    ...
    fedcmp.errors.ConfigError: launch.group_size=3 does not divide the 4 ranks of this run
    """
    if world_size % group_size:
        raise ConfigError(f"launch.group_size={group_size} does not divide the {world_size} ranks of this run")
    return Topology(world_size, group_size)


def assign(costs: Sequence[int], num_groups: int) -> tuple[tuple[int, ...], ...]:
    """Which group takes which wave: each to the group that has least to do, so that groups finish together.

    What a wave computes does not depend on the group that it is assigned to.

    Args:
        costs: what each wave costs, longest first.
        num_groups: G.

    Returns:
        The waves of each group, in the order in which it takes them.

    >>> assign([5, 4, 3, 3], num_groups=2)
    ((0, 3), (1, 2))
    """
    assigned: list[list[int]] = [[] for _ in range(num_groups)]
    loads = [0] * num_groups
    for wave, cost in enumerate(costs):
        group = loads.index(min(loads))
        assigned[group].append(wave)
        loads[group] += cost
    return tuple(tuple(waves) for waves in assigned)
