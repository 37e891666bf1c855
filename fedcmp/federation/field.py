"""Where the clients of a run are: the seam between the round loop and those who train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.client import LocalStates
from fedcmp.federation.fusing import FusedRound
from fedcmp.federation.sampling import RoundPlan
from fedcmp.types import Params, Scalars

if TYPE_CHECKING:
    from fedcmp.federation.federation import Federation


class Trained(Protocol):
    """The clients of one round, trained and judged."""

    def fuse(self) -> FusedRound:
        """Aggregates the accepted clients.

        Raises:
            AggregationError: too few clients.
        """

    def keep(self, clients: Iterable[int]) -> LocalStates:
        """What ``clients`` keep for later rounds, at the server; elsewhere it is empty."""


class Field(Protocol):
    """The clients of a run: ``Here``, in the processes of this run, or at sites. All ranks make the same calls."""

    def begin(self, federation: Federation, rounds_done: int) -> None:
        """Called once, before the first of the rounds that are left."""

    def train(self, federation: Federation, state: FederationState, plan: RoundPlan) -> Trained:
        """Trains and judges the clients of a round.

        Raises:
            ClientError: a client failed, and ``federation.on_client_error`` is ``raise``.
            AggregationError: fewer than ``federation.min_clients`` are accepted.
        """

    def evaluate(self, federation: Federation, params: Params) -> Scalars:
        """The record of losses on the validation samples, the same on every rank; empty: no client may say."""
