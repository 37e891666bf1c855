"""All that a run is made of, as one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.distributed.team import Solo, Team
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.field import Field
from fedcmp.federation.privacy import Protection
from fedcmp.federation.sampling import RoundPlan, RunPlan
from fedcmp.federation.settings import FederationConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Tracker


@dataclass(frozen=True)
class Federation:
    """All that a run is made of; ``fedcmp.runs`` makes it from the config, or a script of yours by hand."""

    field: Field
    """Where the clients are."""
    aggregator: Aggregator
    plan: RunPlan
    config: FederationConfig
    optimizer: OptimizerConfig
    tracker: Tracker
    progress: Progress
    checkpoints: Path | None = None
    """Folder for checkpoints; None: none are written."""
    stop: Callable[[], bool] = lambda: False
    """Asked at each round's end; one rank that says yes stops all."""
    on_round: Callable[[FederationState, Mapping[str, Any]], bool] = lambda state, record: False
    """Told at the server what each round led to, and its record; True stops."""
    team: Team = dataclasses.field(default_factory=Solo)
    """The ranks of this run."""
    privacy: Protection | None = None
    """What protects the clients; None: nothing does."""

    @property
    def rounds(self) -> tuple[RoundPlan, ...]:
        """The rounds that will run: all that are planned, or as many as the budget of privacy allows."""
        return self.plan.rounds[: self.privacy.affordable] if self.privacy else self.plan.rounds
