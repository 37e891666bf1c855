"""Clients that are trained in the processes of this run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedcmp.aggregation.contribution import Contribution
from fedcmp.data.stream import announce
from fedcmp.evaluation.losses import EvalData, evaluate
from fedcmp.federation.byzantine import Attack
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.client import LocalStates
from fedcmp.federation.field import Field, Trained
from fedcmp.federation.fusing import FusedRound, fuse_round
from fedcmp.federation.gate import Report, judge
from fedcmp.federation.groups import bring_back, coming_batches, train_round
from fedcmp.federation.sampling import RoundPlan
from fedcmp.types import Fetch, Params, Scalars

if TYPE_CHECKING:
    from fedcmp.federation.federation import Federation
    from fedcmp.module import ProjectorAlignment


@dataclass(frozen=True)
class Here(Field):
    """All clients: the groups of ranks train them in waves."""

    module: ProjectorAlignment
    fetch: Fetch
    """Training sample indices to a batch."""
    eval_data: EvalData
    attack: Attack | None = None
    """Byzantine clients, simulated; None: there are none."""

    def begin(self, federation: Federation, rounds_done: int) -> None:
        announce(self.fetch, coming_batches(federation, rounds_done))

    def train(self, federation: Federation, state: FederationState, plan: RoundPlan) -> Trained:
        trained = train_round(self, federation, state, plan)
        reports, accepted = judge(federation, trained, state.params, plan)
        return TrainedHere(federation, state, plan, reports, accepted, trained.states)

    def evaluate(self, federation: Federation, params: Params) -> Scalars:
        return evaluate(self.module, params, self.eval_data, team=federation.team).scalars()


@dataclass(frozen=True)
class TrainedHere(Trained):
    """The clients of one round, each where it was trained."""

    federation: Federation
    state: FederationState
    """Before the round."""
    plan: RoundPlan
    reports: list[Report]
    accepted: list[Contribution]
    """Those of this rank."""
    states: LocalStates
    """What the clients of this rank would keep."""

    def fuse(self) -> FusedRound:
        return fuse_round(self.federation, self.accepted, self.plan, self.state)._replace(reports=self.reports)

    def keep(self, clients: Iterable[int]) -> LocalStates:
        chosen = frozenset(clients)
        owners = {one.client_id: one.rank for one in self.reports if one.client_id in chosen}
        return bring_back(self.federation.team, self.states, owners)
