"""Contributions of seven clients, and how they may be assigned to ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.aggregation.parts import Aggregated
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.federation.refit import refit_on
from fedcmp.types import Params

SHAPES = {"linear_1.weight": (4, 3), "linear_1.bias": (4,), "linear_2.weight": (2, 4), "linear_2.bias": (2,)}
NUM_CLIENTS = 7


def random_params(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def evidence(seed: int) -> dict[str, torch.Tensor]:
    """Second moments of random inputs, a constant 1 with them, for both layers."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for layer, width in (("linear_1", 3), ("linear_2", 4)):
        rows = torch.cat([torch.randn(20, width, generator=generator), torch.ones(20, 1)], dim=1)
        found[layer] = rows.T @ rows / 20
    return found


def features(seed: int) -> torch.Tensor:
    """Twenty image tokens."""
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))


def contribution(client: int, round_: int = 0) -> Contribution:
    """A client that recorded everything that a method may ask for."""
    seed = 100 * round_ + client
    delta, noise = random_params(seed, 0.1), random_params(seed + 50, 0.02)
    return Contribution(
        client,
        delta,
        halfway={name: value / 2 + noise[name] for name, value in delta.items()},
        evidence=evidence(seed),
        message=random_params(seed + 70),
        num_samples=10 + 7 * client,
        num_tokens=31 + 5 * client,
        num_steps=2 + client,
        scalars={"loss": 1.0 + client / 8, "loss_first": 1.5 + client / 8, "loss_last": 0.5 + client / 8},
        refit=refit_on(lambda: [features(seed)]),
        picture_losses=(1.0, 1.0 + 0.2 * client) if client != 3 else (2.0, 2.0),
    )


def moved(params: Params, device: str) -> Params:
    return {name: value.to(device) for name, value in params.items()}


def brought(client: int, round_: int, device: str) -> Contribution:
    """``contribution`` on another device."""
    one = contribution(client, round_)
    parts = {part: moved(getattr(one, part), device) for part in ("delta", "halfway", "evidence", "message")}
    return replace(one, **parts)


def two_rounds(method: Aggregator, device: str, cohort: Callable[[int], Cohort] | None = None) -> Params:
    """Over all clients, or a cohort for each round; the second one has a state, a basis and a last step."""
    params = moved(random_params(1), device)
    state = method.init(params)
    for round_ in range(2):
        whole = cohort or (lambda now: LocalCohort([brought(client, now, device) for client in range(NUM_CLIENTS)]))
        params, state, _ = method.aggregate(whole(round_), params, state)
    assert {value.device.type for value in params.values()} == {torch.device(device).type}
    return params


CASES = {name: AggregatorConfig(name, pairwise=64 if name == "fedcmp" else 0) for name in sorted(PRESETS)}
CASES["fedcmp, clipped"] = AggregatorConfig("fedcmp", clip_norm=0.3, pairwise=3)
CASES["fedcmp, guarded"] = AggregatorConfig("fedcmp", guard=True)
CASES["median, normalised"] = AggregatorConfig("median", normalise=True, weights="tokens")
CASES["fedcmp, basis from the evidence"] = AggregatorConfig("fedcmp", fuse={"basis": "evidence", "tau_from": "each"})
"""Methods whose bits do not depend on where clients are; cosines of all pairs, many small messages, once."""


def rounds(config: AggregatorConfig, cohort: Callable[..., Cohort] | None = None) -> list[Aggregated]:
    """Three rounds over all clients, or over ``cohort`` of the round, its parameters and the clients' state."""
    aggregator, params = build_aggregator(config), random_params(1)
    state, results = aggregator.init(params), []
    for round_ in range(3):
        whole = cohort or (lambda now, *_: LocalCohort(contributions(now), config.weights, NUM_CLIENTS + 2))
        params, state, _ = result = aggregator.aggregate(whole(round_, params, state["local"]), params, state)
        results.append(result)
    return results


def plain(value: Any) -> Any:
    """Nested values that are equal if and only if they are to the bit."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return (value.dtype, value.shape, repr(value.tolist())) if isinstance(value, torch.Tensor) else repr(value)


def contributions(round_: int = 0) -> list[Contribution]:
    return [contribution(client, round_) for client in range(NUM_CLIENTS)]


def assign(world_size: int, round_: int = 0) -> list[list[int]]:
    """The clients of each rank: shuffled, uneven, assigned anew each round; one rank of several has none."""
    order = torch.randperm(NUM_CLIENTS, generator=torch.Generator().manual_seed(round_)).tolist()
    idle = round_ % world_size if world_size > 1 else None
    busy = [rank for rank in range(world_size) if rank != idle]
    assigned: list[list[int]] = [[] for _ in range(world_size)]
    for place, client in enumerate(order):
        assigned[busy[place * place % len(busy)]].append(client)
    return assigned
