"""A cohort that gives noisy sums of bounded terms and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedcmp.aggregation.base import Cohort, Contribution, Traffic
from fedcmp.errors import AggregationError
from fedcmp.privacy.noise import Draw, Noising
from fedcmp.privacy.release import clip_parts
from fedcmp.types import Params

T = TypeVar("T")

BELOW = "below"
"""The part, and the tensor in it, that counts the clients whose norm is at most the clip."""


class PrivateCohort:
    """The clients of one round, of whom the server gets each part of ``release`` once: a noisy sum of clipped terms.

    Every client has the weight ``1 / invited``, whoever reports, so that a client changes a sum by its own term only.

    Args:
        inner: the cohort. All that differs between clients beyond their contributions stays unread.
        noising: what may be asked, within which bounds, and how much noise it gets.
        draw: where noise comes from.
        round: counted from 0; names the noise.
        counted: a clip; whether a client's norm is within it is asked beside the part ``delta``, as the part ``below``
            (1/2 or -1/2). None: it is not.

    Raises:
        AggregationError: fewer clients report than must add their share, or more than were invited.
    """

    def __init__(self, inner: Cohort, noising: Noising, draw: Draw, round: int, counted: float | None = None) -> None:
        if len(inner.clients) > noising.invited:  # no assert: it must hold under python -O, too
            raise AggregationError(f"{len(inner.clients)} clients report, and {noising.invited} were invited")
        if noising.helpers is not None and len(inner.clients) < noising.helpers:
            raise AggregationError(
                f"round {round + 1}: {len(inner.clients)} clients report, and the promised noise needs the shares of "
                f"{noising.helpers} (privacy.honest)"
            )
        self._inner, self._noising, self._draw = inner, noising, draw
        self._release, self._invited = noising.release, noising.invited
        self._round, self._counted = round, counted
        self._answered: set[str] = set()
        self.below: float | None = None
        """The noisy share of clients whose norm is within the clip, once it was asked; the same on every rank."""

    @property
    def clients(self) -> tuple[int, ...]:
        """Those that report."""
        return self._inner.clients

    @property
    def weights(self) -> Tensor:
        """``1 / invited`` each; they sum to less than 1 where some do not report."""
        return torch.full((len(self.clients),), 1.0 / self._invited, dtype=torch.float64)

    @property
    def population(self) -> int:
        """The inner cohort's."""
        return self._inner.population

    @property
    def traffic(self) -> Traffic:
        """The inner cohort's."""
        return self._inner.traffic

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        """The noisy sum of clipped terms, float64.

        Raises:
            AggregationError: a tensor has no bound, or a part was asked before in this round.
        """
        found = self._inner.on_server(self._finish, self._inner.sum(partial(self._term, fn)))
        total, below = found if found is not None else ({}, None)
        if self._counted is not None:
            below = self._inner.share(below)
            self.below = self.below if below is None else below
        return total

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Refused: single clients are not released."""
        raise AggregationError("a private cohort has no single clients: rules that gather are refused before the run")

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """As the inner cohort."""
        return self._inner.on_server(fn, *args)

    def share(self, value: T) -> T:
        """As the inner cohort."""
        return self._inner.share(value)

    def _term(self, fn: Callable[[Contribution], Params], contribution: Contribution) -> Params:
        term = fn(self._release.prepare(contribution))
        if self._counted is not None and any(self._release.part_of(name) == "delta" for name in term):
            norm = math.sqrt(contribution.square)
            term = {**term, BELOW: _half(norm <= self._counted, term) / self._invited}
        clipped = clip_parts(term, self._release, 1.0 / self._invited)
        if self._noising.helpers is None:
            return clipped
        return {name: self._noisy(name, value, "client", contribution.client_id) for name, value in clipped.items()}

    def _finish(self, total: Params) -> tuple[Params, float | None]:
        """At the server, once the sums are there."""
        parts = {self._release.require_part(name) for name in total}
        again = parts & self._answered
        if again:
            raise AggregationError(f"{sorted(again)} were answered in this round already: the budget counts them once")
        self._answered |= parts
        if self._noising.helpers is None:
            total = {name: self._noisy(name, value) for name, value in total.items()}
        below = total.get(BELOW)
        rest = {name: value for name, value in total.items() if name != BELOW}
        cleaned = self._release.clean(rest, self._noising.deviation, 1.0 / self._invited)
        return cleaned, None if below is None else min(1.0, max(0.0, float(below) + 0.5))

    def _noisy(self, name: str, value: Tensor, *path: str | int) -> Tensor:
        return self._noising.add(name, value, self._draw, self._round, name, *path)


def _half(above: bool, beside: Params) -> Tensor:
    device = next(iter(beside.values())).device
    return torch.tensor(0.5 if above else -0.5, dtype=torch.float64, device=device)
