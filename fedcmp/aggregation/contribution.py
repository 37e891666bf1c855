"""The contributions of a round's clients, and the cohort through which the server sees them.

A delta is local minus global, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fedcmp.aggregation.linalg import squared_norm
from fedcmp.types import Params, Scalars

T = TypeVar("T")

Outcome = Callable[[Sequence[Params]], list[float]]
"""Projectors to their losses."""


class Moments(NamedTuple):
    """Means over image tokens of one affine layer behind fused layers: x~ = [x; 1] is its input there."""

    inputs: Tensor
    """``mean x~ x~^T``, ``[N', N']``, float32."""
    gaps: Tensor
    """``mean (y_k - y) x~^T``, ``[M, N']``, float32: y_k is the output of the layer in the client's own projector, y
    in the fused one."""
    tokens: int
    """n: over so many."""


Refit = Callable[[str, Params, Params], Moments]
"""An affine layer, the client's own projector, and one whose layers before this one are fused, to the moments."""

CHUNK = 2**22
"""Entries of one client that are gathered at a time."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one client did in one round. It stays where the client was trained; the cohort decides what leaves."""

    client_id: int
    delta: Params
    """Local minus global, float32, keys and shapes of the projector."""
    halfway: Params | None = None
    """The delta after half of the local steps, if the method needs ``"halfway"``."""
    evidence: Params | None = None
    """Per affine layer, the mean of x~ x~^T over its inputs, ``[N', N']``, if the method needs ``"evidence"``."""
    image_tokens: int = 0
    """Image tokens of which the evidence is the mean; 0: unknown."""
    message: Params | None = None
    """What the local step sends beside the delta, for example the change of a control variate."""
    num_samples: int = 1
    """Samples used in this round, at least 0."""
    num_tokens: int = 0
    """Tokens that carried loss, at least 0."""
    num_steps: int = 1
    """Local optimizer steps, at least 0."""
    outcome: Outcome | None = None
    """Losses per token of projectors on the client's next batch, which has not been trained on, nan if there is none;
    None: the method does not need ``"outcome"``."""
    refit: Refit | None = None
    """Moments over the samples of this round; None: the method does not need ``"refit"``."""
    picture_losses: tuple[float, float] | None = None
    """Losses per token on a batch of the client before it is trained on: with its pictures, and with them exchanged;
    nan if the batch has too few rows. None: the method does not need ``"image_use"``."""
    factor: float = 1.0
    """By what a fuse multiplies the client's weight p_k, at least 0."""
    progress: float = 0.0
    """The share of the run that is done with this round, in [0, 1]."""
    rounds_left: int | None = None
    """Rounds of the run after this one; None: unknown."""
    scalars: Scalars = field(default_factory=dict)
    """``loss`` (mean per token over the client's steps), ``loss_first`` and ``loss_last`` (of its first and last step),
    ``grad_norm`` (mean; where gradients are clipped), ``seconds``."""

    def scaled(self, factor: float, evidence: float = 1.0) -> Contribution:
        """The contribution with delta and halfway delta times ``factor``, evidence and refit times ``evidence``."""
        halfway = None if self.halfway is None else scaled(self.halfway, factor)
        moments = None if self.evidence is None else scaled(self.evidence, evidence)
        found = replace(self, delta=scaled(self.delta, factor), halfway=halfway, evidence=moments)
        if self.refit is None or evidence == 1.0:
            return found
        refit = self.refit

        def heavier(layer: str, own: Params, fused: Params) -> Moments:
            inputs, gaps, tokens = refit(layer, own, fused)
            return Moments(evidence * inputs, evidence * gaps, tokens)

        return replace(found, refit=heavier)

    def numbers(self, *values: float) -> Tensor:
        """``values`` as a term of a sum: float64, on the delta's device."""
        return torch.tensor(values, dtype=torch.float64, device=next(iter(self.delta.values())).device)

    @cached_property
    def square(self) -> float:
        """``|D_k|^2`` over all of the delta, in float64; computed once."""
        return squared_norm(self.delta)


WEIGHTINGS: dict[str, Callable[[Contribution], float]] = {
    "samples": lambda contribution: float(contribution.num_samples),
    "tokens": lambda contribution: float(contribution.num_tokens),
    "uniform": lambda contribution: 1.0,
}
"""What the weight p_k of a client may count, before the weights of a cohort are brought to sum 1."""


class Traffic(NamedTuple):
    """Bytes between one client and the server in one round, four to a number: the size of a message in float32."""

    up: int = 0
    down: int = 0


def num_bytes(value: Any) -> int:
    """Four bytes for every number in the tensors of a value: nested dicts, tuples and lists are looked into."""
    if isinstance(value, Tensor):
        return 4 * value.numel()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return sum(num_bytes(one) for one in inside if not isinstance(one, float))  # lists of cosines are long


class Cohort(Protocol):
    """The clients of one round, as the server may see them. All ranks make the same calls in the same order.

    What ``sum``, ``gather`` and ``on_server`` return is valid at the server only; ``share`` brings it to every rank.
    """

    @property
    def clients(self) -> tuple[int, ...]:
        """The accepted client ids, sorted."""

    @property
    def weights(self) -> Tensor:
        """The weights p_k in the order of ``clients``: float64 ``[K]`` on the CPU, at least 0, sum 1, on every rank."""

    @property
    def population(self) -> int:
        """Clients of the whole federation, present or not; at least K."""

    @property
    def counted(self) -> float:
        """``sum_k p_k factor_k``, by which weighted sums are divided; known at the server after the first of them."""

    @property
    def traffic(self) -> Traffic:
        """What each client has sent into ``sum`` and ``gather`` and got from ``share`` so far."""

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        """``sum_k w_k fn(contribution_k)``, float64; each term is computed where its client was trained.

        Args:
            fn: pure; it may be called twice for a client, if all terms at once would not fit the memory.
            weights: w_k in the order of ``clients``, ``[K]``; each product is taken in float64. None: all are 1.
        """

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """``fn(contribution_k)``, stacked ``[K, ...]`` in the order of ``clients`` (None: all); costs K copies."""

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        """``fn(*args)``, run at the server, where its result stays; an exception reaches every rank.

        ``fn`` must not call the cohort: the other ranks would not answer.
        """

    def share(self, value: T) -> T:
        """The server's value, on every rank."""


class MappedCohort:
    """A cohort seen through ``change``, which is applied to each contribution where its client was trained.

    Args:
        inner: the cohort.
        change: a contribution to another one.
        weights: in the place of the cohort's: float64 ``[K]``, at least 0, sum 1.
    """

    def __init__(
        self, inner: Cohort, change: Callable[[Contribution], Contribution], weights: Tensor | None = None
    ) -> None:
        self.inner, self.change = inner, change
        self.clients, self.population, self.counted = inner.clients, inner.population, inner.counted
        self.weights = inner.weights if weights is None else weights

    @property
    def traffic(self) -> Traffic:
        return self.inner.traffic

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        return self.inner.sum(lambda contribution: fn(self.change(contribution)), weights)

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        return self.inner.gather(lambda contribution: fn(self.change(contribution)), clients)

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        return self.inner.on_server(fn, *args)

    def share(self, value: T) -> T:
        return self.inner.share(value)


def gather_pieces(cohort: Cohort, params: Params, clients: Sequence[int] | None = None) -> Iterator[tuple[str, Params]]:
    """The deltas of ``clients`` (None: all) in pieces of K x CHUNK numbers: names of ``params``, and ``"piece"``."""
    for name, value in params.items():
        for begin in range(0, value.numel(), CHUNK):
            yield name, cohort.gather(partial(_piece, name, begin, CHUNK), clients)


def _piece(name: str, begin: int, size: int, contribution: Contribution) -> Params:
    return {"piece": contribution.delta[name].flatten()[begin : begin + size]}


def shares(cohort: Cohort) -> dict[int, float]:
    """The weight p_k of each client."""
    return dict(zip(cohort.clients, cohort.weights.tolist(), strict=True))


def delta_of(contribution: Contribution) -> Params:
    """The delta: what most methods sum."""
    return contribution.delta


def square_of(contribution: Contribution) -> Params:
    """``|D_k|^2`` as a term of a sum."""
    return {"square": contribution.numbers(contribution.square)}


def message_of(contribution: Contribution) -> Params:
    """What the local step sent, for methods whose clients always send."""
    assert contribution.message is not None
    return contribution.message


def scaled(values: Params, factor: float) -> Params:
    """All tensors times ``factor``; at 1 the very same tensors."""
    return values if factor == 1.0 else {name: value * factor for name, value in values.items()}


def zeros_like(params: Params) -> Params:
    """Zeros of the names and shapes of ``params``."""
    return {name: torch.zeros_like(value) for name, value in params.items()}


def single(params: Params) -> Params:
    """All tensors as float32: where the float64 of sums ends."""
    return {name: value.float() for name, value in params.items()}
