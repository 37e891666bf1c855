"""The round loop. ``run`` is what everybody reads first."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from fedcmp.data.stream import announce
from fedcmp.distributed.team import is_server, together
from fedcmp.errors import label_client
from fedcmp.evaluation.losses import evaluate
from fedcmp.federation.checkpoint import prune_checkpoints, save_checkpoint
from fedcmp.federation.federation import Federation
from fedcmp.federation.fusing import fuse_round
from fedcmp.federation.gate import Report, compare_norms, gate, report, unjudged
from fedcmp.federation.groups import coming_batches, train_round
from fedcmp.federation.keeping import bring_back
from fedcmp.federation.sampling import RoundPlan
from fedcmp.federation.state import FederationState
from fedcmp.optimizer import lr_factor
from fedcmp.types import Params

log = logging.getLogger(__name__)


def start(federation: Federation, params: Params) -> FederationState:
    """The state before the first round."""
    privacy = federation.privacy.start() if federation.privacy else {}
    return FederationState(params=params, aggregator=federation.aggregator.init(params), privacy=privacy)


def run(federation: Federation, state: FederationState) -> FederationState:
    """Runs the rounds that ``state`` has not seen yet.

    Returns:
        The state after the last round that is planned and that the budget of privacy allows, or after the round in
        which ``federation.stop`` or ``federation.on_round`` asked to stop. Parameters are the same on every rank; what
        the server keeps is valid there.

    Raises:
        AggregationError: too few clients sent a usable update.
    """
    announce(federation.fetch, coming_batches(federation, state.rounds_done))
    if state.rounds_done == 0:
        federation.progress.say("evaluating the projector before the first round")
        begin = {"round": 0, "samples_seen": 0, **_privacy_record(federation, state, 0)}
        _log(federation, _evaluated(federation, state.params, begin))
    with federation.progress.bar(len(federation.rounds), "round", done=state.rounds_done, pause=0) as bar:
        for plan in federation.rounds[state.rounds_done :]:
            state, record = run_round(federation, state, plan)
            enough = _log(federation, record, state)
            bar(1, {"train loss": record.get("train/loss"), "validation loss": record.get("val/loss")})
            if any(federation.team.collect(enough or federation.stop())):
                break
    return state


def run_round(
    federation: Federation, state: FederationState, plan: RoundPlan
) -> tuple[FederationState, dict[str, Any]]:
    """One round: train, gate, aggregate, evaluate. Returns the new state and the round's record."""
    team, t0 = federation.team, time.perf_counter()
    contributions, kept, failed = train_round(federation, state, plan)
    private = federation.privacy is not None
    judged = [
        unjudged(one, state.params) if private else report(one, federation.config, state.params)
        for one in contributions
    ]
    spoken = team.collect([list(one) for one in [*judged, *failed]])
    owners = {one[0]: rank for rank, part in enumerate(spoken) for one in part}
    reports = sorted((Report(*one) for part in spoken for one in part), key=lambda one: one.client_id)
    reports = compare_norms(reports, federation.config)
    accepted = together(team, lambda: gate(reports, federation.config, federation.plan.names))
    for one in reports:
        if one.rejected and is_server(team):
            who = label_client(one.client_id, federation.plan.names)
            log.warning("round %d: %s was left out: %s", plan.round + 1, who, one.rejected)
    t1 = time.perf_counter()
    mine = [one for one in contributions if one.client_id in accepted]
    cohort, aggregated, secured, carried = fuse_round(federation, mine, plan, state)
    new = bring_back(team, kept, {client: owners[client] for client in cohort.clients})
    t2 = time.perf_counter()
    seen = plan.samples_before + plan.num_samples
    record: dict[str, Any] = {
        "round": plan.round + 1,
        "samples_seen": seen,
        "lr": federation.optimizer.lr * lr_factor(seen / federation.plan.num_samples, federation.optimizer),
        **(
            {} if private else _client_records(reports, dict(zip(cohort.clients, cohort.weights.tolist(), strict=True)))
        ),
        **({"clients_dropped": len(plan.dropped)} if federation.config.dropout else {}),
        **_privacy_record(federation, state, plan.round + 1),
        **aggregated.metrics,
        **secured,
        "seconds/train": t1 - t0,
        "seconds/aggregate": t2 - t1,
    }
    last = plan.round + 1 == len(federation.rounds)
    if last or (plan.round + 1) % federation.config.evaluate_every == 0:
        record = _evaluated(federation, aggregated.params, record)
    state = replace(
        state,
        params=aggregated.params,
        aggregator=aggregated.state,
        rounds_done=plan.round + 1,
        samples_seen=seen,
        best_loss=min(state.best_loss, record.get("val/loss", float("inf"))),
        local=state.local | new,
        privacy=carried,
    )
    return state, record


def _evaluated(federation: Federation, params: Params, record: dict[str, Any]) -> dict[str, Any]:
    t0 = time.perf_counter()
    scores = evaluate(federation.module, params, federation.eval_data, team=federation.team)
    return {**record, **scores.scalars(), "seconds/evaluate": time.perf_counter() - t0}


def _log(federation: Federation, record: dict[str, Any], state: FederationState | None = None) -> bool:
    """The server saves, logs and tells; what goes wrong there ends the run on every rank. Whether it is enough.

    A checkpoint without its round's record is of no use, so that the one before it goes only when both are on disk.
    """
    error: Exception | None = None
    enough, path = False, None
    if is_server(federation.team):
        t0 = time.perf_counter()
        try:
            if state is not None and federation.checkpoints is not None:
                path = save_checkpoint(federation.checkpoints, state)
            saved = {"seconds/save": time.perf_counter() - t0} if state is not None else {}
            federation.tracker.log({**record, **saved})
            if path is not None:
                prune_checkpoints(path, federation.config.keep_checkpoints)
            if state is not None:
                enough = federation.on_round(state, record)
        except Exception as caught:
            error = caught
    federation.team.agree(error)
    return enough


def _client_records(reports: list[Report], weights: dict[int, float]) -> dict[str, Any]:
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


def _privacy_record(federation: Federation, state: FederationState, rounds: int) -> dict[str, Any]:
    """Under privacy a record says what the rounds cost so far, and nothing about single clients."""
    return federation.privacy.record(rounds, state.privacy["clip"]) if federation.privacy else {}
