"""Local steps as the optimizer takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcmp.aggregation.base import Cohort
from fedcmp.aggregation.rules import Finished, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Plain:
    """The gradient as it is: the local steps of FedAvg.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def init(self, params: Params) -> State:
        """Nothing is shared."""
        return {}

    def client_init(self, params: Params) -> State:
        """Nothing is kept."""
        return {}

    def correct(self, gradient: Params, local: Params, start: Params, shared: State, client: State) -> Params:
        """The gradient as it is."""
        return gradient

    def finish(self, recorded: dict[str, Params], shared: State, client: State) -> Finished:
        """Nothing is kept or sent."""
        return Finished({}, None)

    def update(self, cohort: Cohort, shared: State) -> State:
        """Nothing is shared."""
        return {}
