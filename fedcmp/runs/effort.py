"""How much a run would compute, from its plan, the shapes of its models and the lengths of some captions."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from fedcmp.config import Config
from fedcmp.data.collate import CaptionEncoder
from fedcmp.data.records import Sample
from fedcmp.distributed.team import Topology
from fedcmp.federation.effort import Effort, Lengths
from fedcmp.federation.forecast import Forecast
from fedcmp.federation.sampling import RunPlan
from fedcmp.models.cost import PEAKS, REACHED, activation_bytes, training_operations
from fedcmp.runs.models import Outline

SAMPLED = 32
"""Batches, and captions with the most letters, that are encoded, to find how long captions are."""


def estimate(
    config: Config,
    outline: Outline,
    samples: Sequence[Sample],
    coming: RunPlan,
    found: Forecast,
    topology: Topology,
    kept: int,
) -> Effort | None:
    """What training takes of the busiest rank; None where a model or its tokenizer is unknown.

    Args:
        samples: for training, as the plan counts them.
        coming: the rounds of the run.
        found: the same by groups; the one with the most samples of a round is waited for.
        kept: pictures whose features all ranks together compute once.
    """
    tower, llm, params, encoder = outline.tower, outline.llm, outline.params, outline.encoder
    if tower is None or llm is None or params is None or encoder is None:
        return None
    lengths = _measure(samples, coming, tower.tokens, encoder)
    checkpointing, size = config.model.activation_checkpointing, sum(value.numel() for value in params.values())
    row = training_operations(llm.decoder, size, tower.tokens, lengths.caption, checkpointing=checkpointing)
    row += tower.operations if config.data.stream else 0.0
    rows = -(-sum(one.longest for one in found.rounds) // topology.group_size)
    slots = min(config.federation.slots, max(one.busiest for one in found.rounds))
    at_once = -(-slots * config.federation.batch_size // topology.group_size)
    positions = tower.tokens + lengths.longest
    held = activation_bytes(llm.decoder, tower.width, positions, lengths.longest, checkpointing=checkpointing)
    once = kept * tower.operations
    rank, run = rows * row + once / topology.world_size, found.num_samples * row + once
    bfloat16 = config.model.llm_dtype == "bfloat16"
    seconds = {name: rank / (REACHED * peak) for name, peak in PEAKS.items() if bfloat16}
    return Effort(rows, lengths, rank, run, at_once, at_once * held, seconds)


def _measure(samples: Sequence[Sample], coming: RunPlan, image: int, encoder: CaptionEncoder) -> Lengths:
    """The mean is over batches from all parts of the run."""
    batches = [batch for one in coming.rounds for task in one.tasks for batch in task.batches]
    sampled = batches[:: -(-len(batches) // SAMPLED)]
    padded = [max(map(len, encoder([samples[index] for index in batch]))) for batch in sampled]
    longest = heapq.nlargest(SAMPLED, samples, key=lambda one: len(one.caption))
    return Lengths(image, sum(padded) / len(padded), max(map(len, encoder(longest))))
