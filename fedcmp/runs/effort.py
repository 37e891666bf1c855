"""How much a run would compute, from its plan, the shapes of its models and the lengths of some captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedcmp.config import Config
from fedcmp.data.records import Sample
from fedcmp.distributed.team import Topology
from fedcmp.federation.effort import Effort, Lengths
from fedcmp.federation.forecast import Forecast
from fedcmp.federation.sampling import RunPlan
from fedcmp.models.cost import PEAKS, REACHED, activation_bytes, training_operations
from fedcmp.models.outline import tokens_per_letter
from fedcmp.runs.models import Outline

SAMPLED = 256
"""Captions whose tokens are counted, and batches whose longest caption is looked for."""


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
    tower, llm, params = outline.tower, outline.llm, outline.params
    lengths = _measure(config, samples, coming, outline)
    if tower is None or llm is None or params is None or lengths is None:
        return None
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


def _measure(config: Config, samples: Sequence[Sample], coming: RunPlan, outline: Outline) -> Lengths | None:
    """By letters: of some captions the tokens are counted. The mean is over batches from all parts of the run."""
    some = [sample.caption for sample in samples[:: -(-len(samples) // SAMPLED)]]
    scale = tokens_per_letter(config.model, [text.lower() if config.data.lowercase else text for text in some])
    most = outline.max_tokens
    if scale is None or outline.tower is None or most is None:
        return None

    def num_tokens(places: Iterable[int]) -> float:
        letters = max(len(samples[place].caption) for place in places)
        return min(scale * letters + 1, most)

    batches = [batch for one in coming.rounds for task in one.tasks for batch in task.batches]
    padded = [num_tokens(batch) for batch in batches[:: -(-len(batches) // SAMPLED)]]
    return Lengths(outline.tower.tokens, sum(padded) / len(padded), round(num_tokens(range(len(samples)))))
