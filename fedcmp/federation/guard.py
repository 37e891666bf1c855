"""What stands between the clients of one round and its rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcmp.aggregation.base import Cohort
from fedcmp.privacy.adaptive import next_clip
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.privacy.noise import Draw, Noising


@dataclass(frozen=True)
class Guard:
    """What stands between the clients of one round and its rule; ``Protection.guard`` makes it."""

    config: PrivacyConfig
    noising: Noising
    draw: Draw
    round: int
    """Counted from 0."""
    state: dict[str, Any]
    """What was carried into the round."""

    def cohort(self, inner: Cohort) -> PrivateCohort:
        """The clients of the round, as the rule may see them.

        Raises:
            AggregationError: fewer clients report than must add noise.
        """
        counted = self.state["clip"] if self.config.quantile else None
        return PrivateCohort(inner, self.noising, self.draw, self.round, counted)

    def after(self, cohort: PrivateCohort) -> dict[str, Any]:
        """What is carried into the next round, once the rule is done; the same on every rank."""
        if cohort.below is None:
            return self.state
        clip = next_clip(self.state["clip"], cohort.below, self.config.quantile, self.config.quantile_rate)
        return {**self.state, "clip": clip}
