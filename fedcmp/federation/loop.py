"""The round loop: ``run`` is where a reader begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.distributed.team import is_server, together
from fedcmp.federation.checkpoint import FederationState, prune_checkpoints, save_checkpoint
from fedcmp.federation.federation import Federation
from fedcmp.federation.privacy import Protection
from fedcmp.federation.records import Clock, describe_round
from fedcmp.federation.sampling import RoundPlan
from fedcmp.types import Params

Record = dict[str, Any]


def start(params: Params, aggregator: Aggregator, privacy: Protection | None = None) -> FederationState:
    """The state before the first round."""
    return FederationState(params, aggregator.init(params), privacy=privacy.start() if privacy else {})


def run(federation: Federation, state: FederationState) -> FederationState:
    """Runs the rounds that ``state`` has not seen yet.

    Returns:
        The state after the last of ``federation.rounds``, or after the one in which ``stop`` or ``on_round`` asked to
        stop. Parameters are the same on every rank; what the server keeps is valid there.
    """
    federation.field.begin(federation, state.rounds_done)
    if state.rounds_done == 0:
        federation.progress.say("evaluating the projector before the first round")
        begin, clock = dict[str, Any](round=0, samples_seen=0), Clock()
        with clock("evaluate"):
            scores = federation.field.evaluate(federation, state.params)
        begin |= federation.privacy.record(0, state.privacy["clip"]) if federation.privacy else {}
        _save(federation, {**begin, **scores, **clock.scalars()})
    with federation.progress.bar(len(federation.rounds), "round", done=state.rounds_done, pause=0) as bar:
        for plan in federation.rounds[state.rounds_done :]:
            state, record = run_round(federation, state, plan)
            enough = _save(federation, record, state)
            bar(1, {"train loss": record.get("train/loss"), "validation loss": record.get("val/loss")})
            if any(federation.team.collect(enough or federation.stop())):
                break
    return state


def run_round(federation: Federation, state: FederationState, plan: RoundPlan) -> tuple[FederationState, Record]:
    """One round: train and judge, fuse, evaluate, record. Returns the new state and the round's record."""
    clock, done = Clock(), plan.round + 1
    with clock("train"):
        trained = federation.field.train(federation, state, plan)
    with clock("aggregate"):
        fused = trained.fuse()
        kept = trained.keep(fused.cohort.clients)
    record = describe_round(federation, state, plan, fused)
    if done == len(federation.rounds) or done % federation.config.evaluate_every == 0:
        with clock("evaluate"):
            record |= federation.field.evaluate(federation, fused.aggregated.params)
    state = replace(
        state,
        params=fused.aggregated.params,
        aggregator=fused.aggregated.state,
        rounds_done=done,
        samples_seen=plan.samples_before + plan.num_samples,
        best_loss=min(state.best_loss, record.get("val/loss", float("inf"))),
        local=state.local | kept,
        privacy=fused.carried,
    )
    return state, record | clock.scalars()


def _save(federation: Federation, record: Record, state: FederationState | None = None) -> bool:
    """The server saves and records; an error there ends the run on every rank. Whether ``on_round`` asked to stop.

    A checkpoint without its round's record is of no use, so that the one before it goes only when both are on disk.
    """

    def write() -> bool:
        clock, path = Clock(), None
        if state is not None:
            with clock("save"):
                path = federation.checkpoints and save_checkpoint(federation.checkpoints, state)
        federation.tracker.log(record | clock.scalars())
        if path is not None:
            prune_checkpoints(path, federation.config.keep_checkpoints)
        return state is not None and federation.on_round(state, record)

    return together(federation.team, lambda: is_server(federation.team) and write())
