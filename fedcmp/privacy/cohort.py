"""A cohort that gives one noisy sum of clipped terms and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, Contribution, Traffic
from fedcmp.errors import AggregationError
from fedcmp.privacy.noise import BELOW, Mechanism, clip_norm
from fedcmp.types import Params


class PrivateCohort:
    """The clients of one round, whose server gets one noisy sum of clipped terms.

    Every client has the weight ``1 / n`` for the n clients that were invited, whether all of them report or not, so
    that a client changes the sum by its own term only.

    Args:
        inner: the cohort. Of it contributions are read, nothing else that differs between clients.
        mechanism: the bound of a term and its noise.

    Raises:
        AggregationError: fewer clients report than must add their share, or more than were invited.
    """

    def __init__(self, inner: Cohort, mechanism: Mechanism) -> None:
        count, helpers = len(inner.clients), mechanism.helpers or 0
        if not helpers <= count <= mechanism.invited:  # no assert: it must be checked under python -O, too
            raise AggregationError(
                f"round {mechanism.round + 1}: {count} clients report, of {mechanism.invited} that were invited; the "
                f"noise needs the shares of {helpers} (privacy.honest)"
            )
        self._inner, self._mechanism = inner, mechanism
        self.clients, self.population = inner.clients, inner.population
        self.weights = torch.full((count,), 1.0 / mechanism.invited, dtype=torch.float64)
        """``1 / n`` each, ``[K]``; they sum to less than 1 if some of the n invited clients do not report."""
        self.on_server, self.share, self.counted = inner.on_server, inner.share, inner.counted
        self._asked = False
        self.below: float | None = None
        """The noisy share of clients whose norm is within the clip, after the sum; the same on every rank."""

    @property
    def traffic(self) -> Traffic:
        return self._inner.traffic

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        """The noisy sum of clipped terms, float64.

        Raises:
            AggregationError: a second sum in this round: the budget counts one.
        """
        if self._asked:
            raise AggregationError("a private cohort was asked for a second sum: the budget of a round counts one")
        self._asked = True
        shares = dict.fromkeys(self.clients, 1.0)
        if weights is not None:
            shares = dict(zip(self.clients, weights.tolist(), strict=True))
        found = self._inner.on_server(self._finish, self._inner.sum(partial(self._term, fn, shares)))
        total, below = found or ({}, None)
        if self._mechanism.counts:
            self.below = self._inner.share(below)
        return total

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Refused: single clients are not released."""
        raise AggregationError("a private cohort releases no single clients: methods that gather have no privacy")

    def _term(self, fn: Callable[[Contribution], Params], shares: dict[int, float], one: Contribution) -> Params:
        mechanism = self._mechanism
        term = fn(replace(one, delta=clip_norm(one.delta, mechanism.clip)))
        term = {name: value.double() * shares[one.client_id] for name, value in term.items()}
        if mechanism.counts:
            half = 0.5 if math.sqrt(one.square) <= mechanism.clip else -0.5
            term[BELOW] = one.numbers(half) / mechanism.invited
        clipped = mechanism.clip_term(term)
        return clipped if mechanism.helpers is None else mechanism.add_noise(clipped, "client", one.client_id)

    def _finish(self, total: Params) -> tuple[Params, float | None]:
        """At the server: the noisy sum, and the share of clients within the clip."""
        total = dict(total if self._mechanism.helpers is not None else self._mechanism.add_noise(total))
        below = total.pop(BELOW, None)
        return total, None if below is None else min(1.0, max(0.0, float(below) + 0.5))
