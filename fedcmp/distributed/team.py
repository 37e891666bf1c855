"""The ranks of a run, as the round loop sees them: one process alone, or groups over process groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import nn

from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.distributed.cohort import GroupCohort, LocalCohort
from fedcmp.distributed.failures import attempt
from fedcmp.distributed.pulse import Pulse, watched
from fedcmp.distributed.topology import Topology
from fedcmp.distributed.wire import Wire

if TYPE_CHECKING:
    from fedcmp.distributed.strategy import ClientGroupStrategy

T = TypeVar("T")


class Team(Protocol):
    """All ranks make the same calls in the same order, whether they have something to say or not."""

    @property
    def topology(self) -> Topology:
        """W ranks in groups of R."""
        ...

    @property
    def rank(self) -> int:
        """This rank, 0 .. W - 1; 0 is the server."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        ...

    def cohort(self, contributions: Sequence[Contribution], weighting: str, population: int) -> Cohort:
        """The cohort of a round from the contributions that this rank speaks for."""
        ...

    @property
    def in_step(self) -> bool:
        """Whether the ranks of a group hold the frozen model together, so that they must call it together."""
        ...

    def shard(self, layers: Iterable[nn.Module]) -> None:
        """Spreads the weights of frozen layers over the group, if the run asks for it."""
        ...

    def sum_in_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of this rank's group, in place."""
        ...

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on every rank."""
        ...

    def collect(self, value: Any) -> list[Any]:
        """What each rank brings (plain containers, numbers and text), by rank, on every rank."""
        ...

    def share(self, value: T, source: int = 0) -> T:
        """The value of rank ``source``, on every rank."""
        ...

    def agree(self, error: BaseException | None) -> None:
        """Raises on every rank what any rank brings."""
        ...


def leads(team: Team) -> bool:
    """Whether this rank speaks for its group."""
    return team.topology.place(team.rank) == 0


def together(team: Team, step: Callable[[], T]) -> T:
    """What ``step`` returns on this rank; if it raises on any rank, all ranks raise. No calls to the team inside."""
    result, error = attempt(step)
    team.agree(error)
    return cast(T, result)


def is_server(team: Team) -> bool:
    """Whether this rank aggregates, logs and saves."""
    return team.rank == 0


class Solo:
    """One process: the oracle of every other team."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.topology = Topology()
        self.rank = 0
        self.device = device or torch.device("cpu")
        self.in_step = False

    def shard(self, layers: Iterable[nn.Module]) -> None:
        """One rank holds it all."""

    def cohort(self, contributions: Sequence[Contribution], weighting: str, population: int) -> Cohort:
        """All clients are here."""
        return LocalCohort(contributions, weighting, population)

    def sum_in_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return tensor

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return tensor

    def collect(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def share(self, value: T, source: int = 0) -> T:
        """The value."""
        return value

    def agree(self, error: BaseException | None) -> None:
        """Raises the error, if there is one."""
        if error is not None:
            raise error


class Groups:
    """Ranks of an initialised process group, set up by a ``ClientGroupStrategy``.

    Args:
        strategy: knows the groups.
        in_step: ``shard`` spreads layers over a group; its ranks then call them together.
        pulse: names the rank that was lost where an exchange fails; None: nobody does.
    """

    def __init__(self, strategy: ClientGroupStrategy, in_step: bool = False, pulse: Pulse | None = None) -> None:
        self.in_step = in_step
        self.topology = strategy.topology
        self.rank = strategy.global_rank
        self.device = strategy.root_device
        self._strategy, self.pulse = strategy, pulse
        self._wire = Wire(device=self.device, pulse=pulse)

    def cohort(self, contributions: Sequence[Contribution], weighting: str, population: int) -> Cohort:
        """The clients of all groups; only the rank that leads its group may bring contributions."""
        return GroupCohort(contributions, self._wire, weighting, population)

    def shard(self, layers: Iterable[nn.Module]) -> None:
        """FSDP2 over the group."""
        if self.in_step:
            self._strategy.shard(layers)

    @watched("inner")
    def sum_in_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """One all_reduce inside the group."""
        return self._strategy.sum_in_group(tensor)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """One all_reduce over the world."""
        return self._wire.total(tensor)

    def collect(self, value: Any) -> list[Any]:
        """One all_gather of JSON."""
        return self._wire.collect(value)

    def share(self, value: T, source: int = 0) -> T:
        """One broadcast for each tensor."""
        return self._wire.share(value, source)

    def agree(self, error: BaseException | None) -> None:
        """One small exchange."""
        self._wire.agree(error)
