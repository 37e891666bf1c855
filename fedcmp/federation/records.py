"""The record of a round: one line of metrics.jsonl."""

from __future__ import annotations

import time
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
    """Seconds by phase.

    >>> clock = Clock()
    >>> with clock("train"):
    ...     pass
    >>> list(clock.scalars())
    ['seconds/train']
    """

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
    federation: Federation, state: FederationState, plan: RoundPlan, reports: Sequence[Report], fused: FusedRound
) -> dict[str, Any]:
    """The record of a round, all but its evaluation and its seconds.

    Under privacy it has what the rounds cost so far, and no number of a single client.

    Args:
        federation: the run.
        state: before the round.
        plan: of the round.
        reports: on its clients.
        fused: what its aggregation returned.
    """
    seen, privacy = plan.samples_before + plan.num_samples, federation.privacy
    record = {
        "round": plan.round + 1,
        "samples_seen": seen,
        "lr": federation.optimizer.lr * lr_factor(seen / federation.plan.num_samples, federation.optimizer),
    }
    if privacy is None:
        record |= _client_records(reports, dict(zip(fused.cohort.clients, fused.cohort.weights.tolist(), strict=True)))
    if federation.config.dropout:
        record["clients_dropped"] = len(plan.dropped)
    if privacy is not None:
        record |= privacy.record(plan.round + 1, state.privacy["clip"])
    return {**record, **fused.aggregated.metrics, **fused.record}


def _client_records(reports: Sequence[Report], weights: dict[int, float]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    loss = tokens = 0.0
    for one in reports:
        key, accepted = f"client/{one.client_id}", one.client_id in weights
        record[f"{key}/loss"] = one.loss
        record[f"{key}/samples"], record[f"{key}/steps"] = one.num_samples, one.num_steps
        record[f"{key}/weight"], record[f"{key}/accepted"] = weights.get(one.client_id, 0.0), accepted
        if one.fault:
            record[f"{key}/left_out"] = one.fault
            record[f"left_out/{one.fault}"] = record.get(f"left_out/{one.fault}", 0) + 1
        if one.failures and accepted:
            record["clients_retried"] = record.get("clients_retried", 0) + 1
        if accepted:
            loss += one.loss * one.num_tokens
            tokens += one.num_tokens
    left_out = sum(one.rejected is not None for one in reports)
    return {"train/loss": loss / max(1.0, tokens), **record, "clients_left_out": left_out}
