"""What one client and the server exchange in a round, at most, counted before it: the method runs on shapes alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import Contribution, Moments, Traffic, num_bytes
from fedcmp.aggregation.evidence import evidence_blocks
from fedcmp.aggregation.linalg import join_affine
from fedcmp.types import Params

T = TypeVar("T")

READERS = {getattr(Tensor, name) for name in ("item", "__float__", "__int__", "__bool__", "tolist", "cpu")}


class Counted(NamedTuple):
    """What a round costs at most."""

    traffic: dict[str, int]
    """``bytes/...`` as in the metrics of the round."""
    widest: int
    """Bytes of the largest sum of a client, four to a number."""
    state: int
    """Bytes of the state after the round."""
    contribution: Contribution
    """What each client records, on the meta device."""
    exchanges: list[list[Params]]
    """What each client sends into the sums and stacks of a round, in their order, on the meta device; a new list begins
    where clients need what the server has shared since."""


def count(aggregator: Aggregator, params: Params, num_clients: int) -> Counted:
    """Runs one round on the meta device: no data, hardly any time and memory, whatever the size.

    Numbers that the method reads from tensors are nan (or 0), so that no test of convergence is met and iterations go
    on to their limit; where the data decide on a rank, it is full. Traffic is an upper bound for that reason.

    Args:
        aggregator: the method.
        params: the projector; only names and shapes are read.
        num_clients: accepted clients of the round.
    """
    shapes = {name: torch.empty_like(value, device="meta") for name, value in params.items()}
    sizes = {block.name: block.end - block.first for blocks in evidence_blocks(shapes).values() for block in blocks}
    moments = {name: torch.empty(size, size, device="meta") for name, size in sizes.items()}
    local, needs = aggregator.local, aggregator.needs
    one = Contribution(
        0,
        shapes,
        halfway=shapes if "halfway" in needs else None,
        evidence=moments if "evidence" in needs else None,
        message=local.finish(dict.fromkeys(local.needs, shapes), local.init(shapes), local.client_init(shapes)).message,
        num_steps=2,
        picture_losses=(0.0, 1.0) if "image_use" in needs else None,
        scalars=dict.fromkeys(("loss", "loss_first", "loss_last", "grad_norm", "seconds"), 1.0),
        outcome=(lambda found: [0.0] * len(found)) if "outcome" in needs else None,
        refit=(lambda layer, own, fused: Moments(moments[layer], join_affine(own, layer), 1))
        if "refit" in needs
        else None,
    )
    cohort = _ShapesCohort(one, num_clients)
    log = logging.getLogger("fedcmp.aggregation")
    level = log.level
    log.setLevel(logging.ERROR)  # no warnings about numbers that are not there
    try:
        with _Unread():
            _, state, metrics = aggregator.aggregate(cohort, shapes, aggregator.init(shapes))
    finally:
        log.setLevel(level)
    traffic = {f"bytes/{name}": int(str(metrics[f"bytes/{name}"])) for name in ("up", "down", "diagnostics")}
    return Counted(traffic, cohort.widest, num_bytes(state), one, [terms for terms in cohort.exchanges if terms])


class _ShapesCohort:
    """K clients that send alike, in shapes: ``fn`` is called once for all of them."""

    def __init__(self, contribution: Contribution, num_clients: int) -> None:
        self._contribution = contribution
        self.clients = tuple(range(num_clients))
        self.weights = torch.full((num_clients,), 1 / num_clients, dtype=torch.float64)
        self.population = num_clients
        self.traffic, self.counted = Traffic(), 1.0
        self.widest = 0
        self.exchanges: list[list[Params]] = [[]]

    def sum(self, fn: Callable[[Contribution], Params], weights: Tensor | None = None) -> Params:
        term = self._term(fn)
        self.widest = max(self.widest, num_bytes(term))
        return {name: value.double() for name, value in term.items()}

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        num = len(self.clients if clients is None else clients)
        return {name: value.expand(num, *value.shape) for name, value in self._term(fn).items()}

    def _term(self, fn: Callable[[Contribution], Params]) -> Params:
        term = fn(self._contribution)
        self.exchanges[-1].append(term)
        self.traffic = self.traffic._replace(up=self.traffic.up + num_bytes(term))
        return term

    def on_server(self, fn: Callable[..., T], *args: Any) -> T:
        return fn(*args)

    def share(self, value: T) -> T:
        self.traffic = self.traffic._replace(down=self.traffic.down + num_bytes(value))
        self.exchanges.append([])
        return value


class _Unread(TorchFunctionMode):
    """Numbers of tensors on the meta device, which have none, read as nan, 0 or False."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READERS and args[0].is_meta:
            absent = float("nan") if args[0].is_floating_point() else 0
            args = (torch.full_like(args[0], absent, device="cpu"), *args[1:])
        return func(*args, **(kwargs or {}))
