"""A method at a site: the same code as at the server, up to what the site has to say. No code travels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from torch import Tensor

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import Cohort, Contribution, Traffic
from fedcmp.types import Params

T = TypeVar("T")


class SiteCohort:
    """The cohort of a round at one site: ``sum`` and ``gather`` apply ``fn`` to the site's own contribution.

    Args:
        contribution: of this site.
        clients: the accepted clients, sorted.
        weights: p_k, float64 ``[K]``.
        population: clients of the federation.
        shared: what the server has shared so far.
        heard: how many terms of this site the server has; they are not computed again.
    """

    traffic, counted = Traffic(), 1.0

    def __init__(
        self,
        contribution: Contribution,
        clients: Sequence[int],
        weights: Tensor,
        population: int,
        shared: Sequence[Any] = (),
        heard: int = 0,
    ) -> None:
        self.clients, self.weights, self.population = tuple(clients), weights, population
        self._own, self._shared, self._heard = contribution, list(shared), heard
        self._count = 0
        self.terms: list[Params] = []
        """What the server does not have yet, in order."""
        self.factors: list[float] = []
        """By what each of these counts in its sum; the server multiplies, unless it sees sums only."""

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        """Notes the site's term; the sum is the server's."""
        self._count += 1
        if self._count > self._heard:
            self.terms.append(fn(self._own))
            place = self.clients.index(self._own.client_id)
            self.factors.append(1.0 if weights is None else float(weights[place]))
        return {}

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Notes the site's term, if the site is one of ``clients``."""
        return self.sum(fn) if clients is None or self._own.client_id in clients else {}

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """Nothing: the server does it."""
        return None  # type: ignore[return-value]

    def share(self, value: T) -> T:
        """The next value that the server has shared; there is none: the site has said all that it can say."""
        if not self._shared:
            raise Paused
        return self._shared.pop(0)


class Paused(Exception):
    """The replay has come to what the server has not shared yet."""


def replay(
    aggregator: Aggregator,
    cohort: SiteCohort,
    params: Params,
    local: dict[str, Any],
    seen: Callable[[Cohort], Cohort] = lambda cohort: cohort,
) -> list[Params]:
    """The terms that this site has to send next.

    Args:
        aggregator: the method.
        cohort: of the site.
        params: the global projector of the round.
        local: the method's shared state for local steps.
        seen: how the method sees the cohort, for example through privacy.
    """
    state = {"local": local, "fuse": {}, "server": {}, "diagnostics": {}}
    with suppress(Paused):
        aggregator.aggregate(seen(cohort), params, state)
    return cohort.terms
