"""What a run will do, from its plan and its shapes: who trains what, bytes on the network, memory.

Pure. Memory leaves out activations: they depend on captions and batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import num_bytes
from fedcmp.aggregation.traffic import count, outline
from fedcmp.distributed.cohort import HELD_BYTES
from fedcmp.distributed.exact import PILE
from fedcmp.distributed.team import Topology
from fedcmp.errors import label_client
from fedcmp.federation.sampling import RunPlan, assign_waves
from fedcmp.federation.settings import FederationConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.types import Params


class GroupForecast(NamedTuple):
    """A group of ranks in the first round."""

    ranks: tuple[int, ...]
    """They train each client together; the first one speaks for them."""
    waves: tuple[tuple[int, ...], ...]
    """Its clients by wave; those of a wave train at once, stacked."""


class RoundForecast(NamedTuple):
    """A round."""

    num_clients: int
    num_dropped: int
    """Clients that were chosen and do not report."""
    num_waves: int
    """Over all groups."""
    busiest: int
    """The most clients that one group trains."""
    num_samples: int
    most: dict[str, int]
    """``bytes/...`` as in metrics.jsonl, at most, if every client is accepted; empty where shapes are unknown."""


class ClientForecast(NamedTuple):
    """A client in the whole run."""

    client: int
    label: str
    """What messages call it."""
    held: int
    """Samples that it has."""
    rounds: int
    """Rounds in which it trains."""
    steps: int
    """Its local steps."""
    samples: int
    """Samples that it uses, each as often as it does."""


class Forecast(NamedTuple):
    """The whole run."""

    groups: tuple[GroupForecast, ...]
    rounds: tuple[RoundForecast, ...]
    clients: tuple[ClientForecast, ...]
    num_samples: int
    """Samples used, repeats included."""
    share_used: float
    """Share of the training samples that is used at all, in [0, 1]."""


def forecast(
    held: Sequence[Sequence[int]],
    plan: RunPlan,
    slots: int,
    topology: Topology,
    aggregator: Aggregator,
    params: Params | None,
    beside: int = 0,
) -> Forecast:
    """What a run will do.

    Args:
        held: the sample indices of each client.
        plan: as the round loop follows it.
        slots: clients that one group trains at once.
        topology: the ranks.
        aggregator: the method.
        params: the projector, of which only names and shapes are read; None: unknown.
        beside: numbers that each client sends in a round beside what the method asks for.
    """
    rounds = []
    counted: dict[int, dict[str, int]] = {}
    for one in plan.rounds:
        assigned = assign_waves(one.tasks, slots, topology)
        num_clients, num_waves = len(one.tasks), sum(map(len, assigned))
        busiest = max(sum(map(len, waves)) for waves in assigned)
        if params is not None and num_clients not in counted:
            traffic = count(aggregator, params, num_clients).traffic
            counted[num_clients] = {**traffic, "bytes/up": traffic["bytes/up"] + 4 * beside * num_clients}
        most = counted.get(num_clients, {})
        rounds.append(RoundForecast(num_clients, len(one.dropped), num_waves, busiest, one.num_samples, most))
    used = {index for one in plan.rounds for task in one.tasks for batch in task.batches for index in batch}
    share = len(used) / sum(len(indices) for indices in held)
    return Forecast(first_groups(plan, slots, topology), tuple(rounds), _clients(held, plan), plan.num_samples, share)


def first_groups(plan: RunPlan, slots: int, topology: Topology) -> tuple[GroupForecast, ...]:
    """Who trains whom in the first round, by group."""
    first = assign_waves(plan.rounds[0].tasks, slots, topology)
    return tuple(
        GroupForecast(topology.members(group), tuple(tuple(task.client_id for task in wave) for wave in waves))
        for group, waves in enumerate(first)
    )


def _clients(held: Sequence[Sequence[int]], plan: RunPlan) -> tuple[ClientForecast, ...]:
    rounds: Counter[int] = Counter()
    steps: Counter[int] = Counter()
    samples: Counter[int] = Counter()
    for one in plan.rounds:
        for task in one.tasks:
            rounds[task.client_id] += 1
            steps[task.client_id] += len(task.batches)
            samples[task.client_id] += task.num_samples
    return tuple(
        ClientForecast(k, label_client(k, plan.names), len(indices), rounds[k], steps[k], samples[k])
        for k, indices in enumerate(held)
    )


class MemoryPart(NamedTuple):
    """Something that is held on the device."""

    what: str
    server: int | None
    """Bytes on rank 0; None: unknown."""
    others: int | None
    """Bytes on every other rank, at most."""


def training_memory(
    params: Params,
    aggregator: Aggregator,
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    busiest: int,
    population: int,
) -> list[MemoryPart]:
    """Everything but the frozen models.

    Args:
        params: the projector, of which only names and shapes are read.
        aggregator: the method.
        federation: slots, and whether clients keep their optimizer.
        optimizer: that of the local steps.
        busiest: the most clients that a group trains in one round.
        population: clients that train in the run.
    """
    size, slots = num_bytes(params), min(federation.slots, busiest)
    moments = size * (2 if optimizer.name == "adamw" else int(optimizer.momentum > 0))
    one, needs = outline(aggregator, params), aggregator.needs
    round_ = count(aggregator, params, max(population, aggregator.fuse.least_clients))
    # parameters and gradients, each once more in the stack; what is recorded while they train
    slot = 4 * size + moments + size * ("gradient" in needs) + 3 * size * ("start_gradient" in needs)
    slot += num_bytes(one.evidence)
    update = num_bytes((one.delta, one.halfway, one.evidence, one.message))
    up = 2 * round_.widest  # float64; the total is int64
    sums = up * (busiest if up * busiest <= HELD_BYTES else min(busiest, PILE)) + up
    kept = num_bytes(aggregator.local.client_init(params)) + (moments if federation.keep_local_state else 0)
    state = round_.state + population * kept
    return [
        MemoryPart(f"{slots} projector{'s' * (slots > 1)} in training", slots * slot, slots * slot),
        MemoryPart(f"updates of {busiest} client{'s' * (busiest > 1)}, until the round ends", *[busiest * update] * 2),
        MemoryPart("sums over clients while they are added, at most", sums, sums),
        MemoryPart("global projector, and at the server the method's state", size + state, size),
    ]
