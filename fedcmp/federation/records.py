"""The record of a round: one line of metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.federation import Federation
from fedcmp.federation.fusing import FusedRound
from fedcmp.federation.gate import Report
from fedcmp.federation.sampling import RoundPlan
from fedcmp.optimizer import lr_factor


class Clock:
    """Seconds by phase: ``with clock("train"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the seconds of the block to a phase."""
        t0 = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - t0)

    def add(self, phase: str, seconds: float) -> None:
        """Adds seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def scalars(self) -> dict[str, float]:
        """As metrics: ``seconds/<phase>``."""
        return {f"seconds/{phase}": value for phase, value in self.seconds.items()}


def describe_round(
    federation: Federation, state: FederationState, plan: RoundPlan, fused: FusedRound
) -> dict[str, Any]:
    """The record of a round, all but its evaluation and its seconds.

    Under privacy it has what the rounds cost so far, and no number of a single client.
    ``state`` is the one before the round.
    """
    seen, privacy = plan.samples_before + plan.num_samples, federation.privacy
    lr = federation.optimizer.lr * lr_factor(seen / federation.plan.num_samples, federation.optimizer)
    record: dict[str, Any] = {"round": plan.round + 1, "samples_seen": seen, "lr": lr}
    if privacy is None:
        weights = dict(zip(fused.cohort.clients, fused.cohort.weights.tolist(), strict=True))
        record |= _client_records(fused.reports, weights)
    if federation.config.dropout:
        record["clients_dropped"] = len(plan.dropped)
    if privacy is not None:
        record |= privacy.record(plan.round + 1, state.privacy["clip"])
    return {**record, **fused.aggregated.metrics, **fused.record}


def _client_records(reports: Sequence[Report], weights: dict[int, float]) -> dict[str, Any]:
    inside = [one for one in reports if one.client_id in weights]
    told = [one for one in inside if not math.isnan(one.loss)]  # a site may keep its losses
    record: dict[str, Any] = {}
    if told:
        loss = sum(one.loss * one.num_tokens for one in told)
        record["train/loss"] = loss / max(1.0, sum(one.num_tokens for one in told))
    for one in reports:
        record |= {
            f"client/{one.client_id}/{what}": value
            for what, value in (
                ("loss", None if math.isnan(one.loss) else one.loss),
                ("samples", one.num_samples),
                ("steps", one.num_steps),
                ("weight", weights.get(one.client_id, 0.0)),
                ("accepted", one.client_id in weights),
                ("left_out", one.fault),
            )
            if value is not None
        }
    faults, retried = Counter(one.fault for one in reports if one.fault), sum(one.failures > 0 for one in inside)
    record |= {f"left_out/{fault}": number for fault, number in faults.items()}
    record |= {"clients_retried": retried} if retried else {}
    return {**record, "clients_left_out": sum(one.rejected is not None for one in reports)}
