"""The ranks of a run, as the round loop sees them: one process alone, or groups of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import nn

from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.distributed.cohort import GroupCohort, LocalCohort
from fedcmp.distributed.messages import together as together
from fedcmp.distributed.pulse import Pulse, watched
from fedcmp.distributed.wire import Alone, Wire
from fedcmp.errors import ConfigError

if TYPE_CHECKING:  # it imports lightning
    from fedcmp.distributed.strategy import ClientGroupStrategy


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
    """Groups that fill the ranks.

    Raises:
        ConfigError: ``launch.group_size`` does not divide the number of ranks.
    """
    if world_size % group_size:
        raise ConfigError(f"launch.group_size={group_size} does not divide the {world_size} ranks of this run")
    return Topology(world_size, group_size)


def assign(costs: Sequence[int], num_groups: int) -> tuple[tuple[int, ...], ...]:
    """The waves of each group: each wave goes to the group that has least to do, so that groups finish together.

    What a wave computes does not depend on the group that it is assigned to.

    Args:
        costs: what each wave costs, longest first.
        num_groups: G.

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


class Solo(Alone):
    """One process: the oracle of every other team.

    On any team all ranks make the same calls in the same order.
    """

    topology = Topology()
    in_step = False
    """Whether the ranks of a group hold the frozen model together, so that they must call it together."""

    def cohort(self, contributions: Sequence[Contribution], weighting: str, population: int) -> Cohort:
        """The cohort of a round; only the rank that leads its group may bring contributions."""
        return LocalCohort(contributions, weighting, population)

    def shard(self, layers: Iterable[nn.Module]) -> None:
        """Spreads the weights of frozen layers over the group, if the run asks for it."""

    def sum_in_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of this rank's group, in place."""
        return tensor


class Groups(Wire):
    """Ranks of an initialised process group, set up by a ``ClientGroupStrategy``.

    Args:
        strategy: knows the groups.
        in_step: ``shard`` spreads layers over a group (FSDP2); its ranks then call them together.
        pulse: names the rank that was lost if an exchange fails; None: no rank is named.
    """

    def __init__(self, strategy: ClientGroupStrategy, in_step: bool = False, pulse: Pulse | None = None) -> None:
        super().__init__(device=strategy.root_device, pulse=pulse)
        self._strategy, self.in_step, self.topology = strategy, in_step, strategy.topology

    def cohort(self, contributions: Sequence[Contribution], weighting: str, population: int) -> Cohort:
        return GroupCohort(contributions, self, weighting, population)

    def shard(self, layers: Iterable[nn.Module]) -> None:
        if self.in_step:
            self._strategy.shard(layers)

    def sum_in_group(self, tensor: torch.Tensor) -> torch.Tensor:
        with watched(self._pulse, "inner"):
            return self._strategy.sum_in_group(tensor)


Team: TypeAlias = Solo | Groups


def leads(team: Team) -> bool:
    """Whether this rank speaks for its group."""
    return team.topology.place(team.rank) == 0


def is_server(team: Team) -> bool:
    """Whether this rank aggregates, logs and saves."""
    return team.rank == 0
