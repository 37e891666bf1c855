"""What a run will do, from its plan and its shapes: who trains what, bytes on the network, memory.

Memory leaves out activations: they depend on captions and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import num_bytes
from fedcmp.aggregation.traffic import count
from fedcmp.distributed.cohort import HELD_BYTES
from fedcmp.distributed.exact import PILE
from fedcmp.distributed.team import Topology
from fedcmp.errors import FedcmpError, label_client
from fedcmp.federation.sampling import ClientTask, RunPlan, assign_waves
from fedcmp.federation.settings import FederationConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.remember import remembered
from fedcmp.types import Params


class GroupForecast(NamedTuple):
    """A group of ranks in the first round, and the clients that it trains, by wave."""

    ranks: tuple[int, ...]
    waves: tuple[tuple[int, ...], ...]


class RoundForecast(NamedTuple):
    """A round; ``num_dropped`` clients were chosen and do not report; waves are those of all groups."""

    num_clients: int
    num_dropped: int
    num_waves: int
    busiest: int
    """The most clients that one group trains."""
    num_samples: int
    longest: int
    """The most samples that one group trains on."""
    most: dict[str, int]
    """``bytes/...`` as in metrics.jsonl, at most, if every client is accepted; empty where shapes are unknown."""


class ClientForecast(NamedTuple):
    """A client in the whole run: samples that it has, rounds in which it trains, steps, samples with repeats."""

    label: str
    held: int
    rounds: int
    steps: int
    samples: int


class Forecast(NamedTuple):
    """The whole run; ``num_samples`` with repeats, ``share_used`` of the training samples at all, in [0, 1]."""

    groups: tuple[GroupForecast, ...]
    rounds: tuple[RoundForecast, ...]
    clients: tuple[ClientForecast, ...]
    num_samples: int
    share_used: float


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
        slots: clients that one group trains at once.
        params: the projector, of which only names and shapes are read; None: unknown.
        beside: numbers that each client sends in a round beside what the method asks for.
    """
    most: dict[int, dict[str, int]] = {}
    for size in {len(one.tasks) for one in plan.rounds}:
        most[size] = _count(aggregator, params, size).traffic if params is not None else {}
        if params is not None:
            most[size]["bytes/up"] += 4 * beside * size
    rounds = []
    for one in plan.rounds:
        assigned, size = assign_waves(one.tasks, slots, topology), len(one.tasks)
        busiest = max(sum(map(len, waves)) for waves in assigned)
        num_waves = sum(map(len, assigned))
        longest = max(sum(task.num_samples for wave in waves for task in wave) for waves in assigned)
        rounds.append(RoundForecast(size, len(one.dropped), num_waves, busiest, one.num_samples, longest, most[size]))
    tasks = [task for one in plan.rounds for task in one.tasks]
    by_client: dict[int, list[ClientTask]] = {client: [] for client in range(len(held))}
    for task in tasks:
        by_client[task.client_id].append(task)
    clients = []
    for client, own in by_client.items():
        steps, samples = sum(len(task.batches) for task in own), sum(task.num_samples for task in own)
        clients.append(ClientForecast(label_client(client, plan.names), len(held[client]), len(own), steps, samples))
    used = {index for task in tasks for batch in task.batches for index in batch}
    groups = first_groups(plan, slots, topology)
    return Forecast(groups, tuple(rounds), tuple(clients), plan.num_samples, len(used) / sum(map(len, held)))


def first_groups(plan: RunPlan, slots: int, topology: Topology) -> tuple[GroupForecast, ...]:
    """Who trains whom in the first round, by group."""
    first = assign_waves(plan.rounds[0].tasks, slots, topology)
    return tuple(
        GroupForecast(topology.members(group), tuple(tuple(task.client_id for task in wave) for wave in waves))
        for group, waves in enumerate(first)
    )


class _Bytes(NamedTuple):
    """What a round takes at most: traffic, the largest sum and the state as in ``Counted``; a client's evidence, its
    whole update, and what it keeps."""

    traffic: dict[str, int]
    widest: int
    state: int
    evidence: int
    update: int
    kept: int


def _count(aggregator: Aggregator, params: Params, num_clients: int) -> _Bytes:
    """Remembered, for torch imports its compiler to compute with shapes.

    Raises:
        FedcmpError: the method computes outside of ``on_server`` with what it has from clients.
    """

    def find() -> _Bytes:
        try:
            counted = count(aggregator, params, num_clients)
        except RuntimeError as error:
            name, hint = type(aggregator.fuse).__name__, "gathered and summed values have numbers in on_server only"
            raise FedcmpError(f"{name} cannot run on shapes, by which bytes are counted ({hint}): {error}") from error
        one, kept = counted.contribution, num_bytes(aggregator.local.client_init(params))
        update = num_bytes((one.delta, one.halfway, one.evidence, one.message))
        return _Bytes(counted.traffic, counted.widest, counted.state, num_bytes(one.evidence), update, kept)

    shapes = [(name, tuple(value.shape), value.dtype) for name, value in params.items()]
    return _Bytes(*remembered(find, "traffic", aggregator, shapes, num_clients))


class MemoryPart(NamedTuple):
    """Something on the device: bytes on rank 0, and on every other rank at most; None: unknown."""

    what: str
    server: int | None
    others: int | None


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
        busiest: the most clients that a group trains in one round.
        population: clients that train in the run.
    """
    size, slots, needs = num_bytes(params), min(federation.slots, busiest), aggregator.needs
    moments = size * (int(optimizer.momentum > 0) if optimizer.name == "sgd" else 2)  # Muon: at most
    counted = _count(aggregator, params, max(population, aggregator.fuse.least_clients))
    # parameters and gradients, each once more in the stack; what is recorded while they train
    slot = 4 * size + moments + size * ("gradient" in needs) + 3 * size * ("start_gradient" in needs)
    slot += counted.evidence
    up = 2 * counted.widest  # float64; the total is int64
    sums = up * (busiest if up * busiest <= HELD_BYTES else min(busiest, PILE)) + up
    kept = counted.kept + (moments if federation.keep_local_state else 0)
    state = counted.state + population * kept
    return [
        MemoryPart(f"{slots} projector{'s' * (slots > 1)} in training", slots * slot, slots * slot),
        MemoryPart(
            f"updates of {busiest} client{'s' * (busiest > 1)}, until the round ends", *[busiest * counted.update] * 2
        ),
        MemoryPart("sums over clients while they are added, at most", sums, sums),
        MemoryPart("global projector, and at the server the method's state", size + state, size),
    ]
