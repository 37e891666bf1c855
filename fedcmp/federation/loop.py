"""The round loop. ``run`` is what everybody reads first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.base import Contribution
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.federation.checkpoint import save_checkpoint
from fedcmp.federation.client import Fetch, LocalStates, train_wave
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.evaluate import EvalData, evaluate
from fedcmp.federation.gate import gate
from fedcmp.federation.sampling import RoundPlan, RunPlan, plan_waves
from fedcmp.federation.state import FederationState
from fedcmp.module import OptimizerConfig, ProjectorAlignment, lr_factor
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Tracker
from fedcmp.types import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Federation:
    """All that a run is made of; ``build.py`` makes it from the config, or a script of yours by hand."""

    module: ProjectorAlignment
    aggregator: Aggregator
    plan: RunPlan
    fetch: Fetch
    """Training sample indices to a batch."""
    eval_data: EvalData
    config: FederationConfig
    optimizer: OptimizerConfig
    tracker: Tracker
    progress: Progress
    checkpoints: Path | None = None
    """Folder for checkpoints; None: none are written."""
    stop: Callable[[], bool] = lambda: False
    """Asked at each round's end."""


def start(federation: Federation, params: Params) -> FederationState:
    """The state before the first round."""
    return FederationState(params=params, aggregator=federation.aggregator.init(params))


def run(federation: Federation, state: FederationState) -> FederationState:
    """Runs the rounds that ``state`` has not seen yet.

    Returns:
        The state after the last round, or after the round in which ``federation.stop`` asked to stop.

    Raises:
        AggregationError: too few clients sent a usable update.
    """
    federation.tracker.log(_evaluated(federation, state.params, {"round": state.rounds_done, "samples_seen": 0}))
    with federation.progress.bar(len(federation.plan.rounds), "rounds", done=state.rounds_done) as bar:
        for plan in federation.plan.rounds[state.rounds_done :]:
            state, record = run_round(federation, state, plan)
            t0 = time.perf_counter()
            if federation.checkpoints is not None:
                save_checkpoint(federation.checkpoints, state, federation.config.keep_checkpoints)
            federation.tracker.log({**record, "seconds/save": time.perf_counter() - t0})
            bar(1, {"loss": record.get("val/loss")})
            if federation.stop():
                break
    return state


def run_round(
    federation: Federation, state: FederationState, plan: RoundPlan
) -> tuple[FederationState, dict[str, Any]]:
    """One round: train, gate, aggregate, evaluate. Returns the new state and the round's record."""
    t0 = time.perf_counter()
    contributions, local = _train(federation, state, plan)
    gated = gate(contributions, federation.config)
    for client, reason in gated.rejected.items():
        log.warning("round %d: client %d was left out: %s", plan.round + 1, client, reason)
    t1 = time.perf_counter()
    cohort = LocalCohort(gated.accepted, federation.aggregator.weighting, federation.plan.num_clients)
    aggregated = federation.aggregator.aggregate(cohort, state.params, state.aggregator)
    t2 = time.perf_counter()
    seen = plan.samples_before + plan.num_samples
    record: dict[str, Any] = {
        "round": plan.round + 1,
        "samples_seen": seen,
        "lr": federation.optimizer.lr * lr_factor(seen / federation.plan.num_samples, federation.optimizer),
        **_client_records(contributions, dict(zip(cohort.clients, cohort.weights.tolist(), strict=True))),
        **aggregated.metrics,
        "seconds/train": t1 - t0,
        "seconds/aggregate": t2 - t1,
    }
    last = plan.round + 1 == len(federation.plan.rounds)
    if last or (plan.round + 1) % federation.config.evaluate_every == 0:
        record = _evaluated(federation, aggregated.params, record)
    state = replace(
        state,
        params=aggregated.params,
        aggregator=aggregated.state,
        rounds_done=plan.round + 1,
        samples_seen=seen,
        best_loss=min(state.best_loss, record.get("val/loss", float("inf"))),
        local=state.local | {client: kept for client, kept in local.items() if client not in gated.rejected},
    )
    return state, record


def _train(federation: Federation, state: FederationState, plan: RoundPlan) -> tuple[list[Contribution], LocalStates]:
    total = federation.plan.num_samples

    def progress(share: float) -> float:
        return (plan.samples_before + share * plan.num_samples) / total

    contributions: list[Contribution] = []
    local: LocalStates = {}
    for wave in plan_waves(plan.tasks, federation.config.slots):
        result = train_wave(
            federation.module,
            state.params,
            wave,
            federation.fetch,
            federation.optimizer,
            progress,
            needs=federation.aggregator.needs,
            rule=federation.aggregator.local,
            shared=state.aggregator["local"],
            states=state.local,
            keep_optimizer=federation.config.keep_local_state,
        )
        contributions += result.contributions
        local.update(result.states)
    return sorted(contributions, key=lambda contribution: contribution.client_id), local


def _evaluated(federation: Federation, params: Params, record: dict[str, Any]) -> dict[str, Any]:
    t0 = time.perf_counter()
    scores = evaluate(federation.module, params, federation.eval_data)
    return {**record, **scores.scalars(), "seconds/evaluate": time.perf_counter() - t0}


def _client_records(contributions: list[Contribution], weights: dict[int, float]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    loss = tokens = 0.0
    for one in contributions:
        key, accepted = f"client/{one.client_id}", one.client_id in weights
        record[f"{key}/loss"] = one.scalars["loss"]
        record[f"{key}/samples"], record[f"{key}/steps"] = one.num_samples, one.num_steps
        record[f"{key}/weight"], record[f"{key}/accepted"] = weights.get(one.client_id, 0.0), accepted
        if accepted:
            loss += one.scalars["loss"] * one.num_tokens
            tokens += one.num_tokens
    return {"train/loss": loss / max(1.0, tokens), **record}
