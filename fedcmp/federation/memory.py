"""What a rank will hold, estimated from shapes. Activations are left out: they depend on captions and batches. Pure."""

from __future__ import annotations

from typing import NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import num_bytes
from fedcmp.aggregation.traffic import count, outline
from fedcmp.distributed.exact import PILE
from fedcmp.distributed.terms import HELD_BYTES
from fedcmp.federation.config import FederationConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.types import Params


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
