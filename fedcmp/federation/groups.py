"""A round's local training: waves of clients, assigned to the groups of ranks.

What clients keep from round to round lives at the server: a checkpoint has it, and any group may train them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fedcmp.credentials import mask
from fedcmp.distributed.team import Team, is_server, leads
from fedcmp.errors import ClientError, FedcmpError, label_client
from fedcmp.federation.byzantine import attack_round
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.client import Failure, LocalRound, LocalStates, WaveResult, train_wave, wave_rows
from fedcmp.federation.sampling import ClientTask, RoundPlan, assign_waves

if TYPE_CHECKING:
    from fedcmp.federation.federation import Federation
    from fedcmp.federation.here import Here

log = logging.getLogger(__name__)

TRIES = {"raise": 0, "skip": 1, "retry": 2}
"""How often a client is trained alone before it is left out; 0: its error ends the run."""


def train_round(here: Here, federation: Federation, state: FederationState, plan: RoundPlan) -> WaveResult:
    """Trains the waves of this rank's group, one after the other.

    Returns:
        The contributions that this rank speaks for, by client id (empty where it does not lead its group), what those
        clients keep, and who failed.

    Raises:
        ClientError: a client failed, here or in another group, and ``federation.on_client_error`` is ``raise``; every
            rank raises it.
    """
    team, config, aggregator = federation.team, federation.config, federation.aggregator
    mine = assign_waves(plan.tasks, config.slots, team.topology)[team.topology.group(team.rank)]
    clients = frozenset(task.client_id for wave in mine for task in wave)
    before = hand_out(team, state.local, [task.client_id for task in plan.tasks], clients)
    trained = WaveResult([], {}, [])
    error: Exception | None = None
    samples = sum(task.num_samples for wave in mine for task in wave)
    common = LocalRound(
        state.params,
        federation.optimizer,
        plan.progress(federation.plan.num_samples),
        aggregator.needs,
        aggregator.local,
        state.aggregator["local"],
        federation.rounds[plan.round + 1 :],
        config.keep_local_state,
        team,
    )
    try:
        with federation.progress.bar(samples, f"round {plan.round + 1}, samples of this group", pause=60) as bar:
            for number, wave in enumerate(mine, 1):
                done = {"wave": f"{number}/{len(mine)}", "clients done": f"{len(trained.contributions)}/{len(clients)}"}
                train = partial(_train, here, federation, plan, common, before, partial(bar, shown=done))
                found = train_survivors(train, wave, TRIES[config.on_client_error])
                trained.contributions.extend(found.contributions)
                trained.states.update(found.states)
                trained.failed.extend(found.failed)
    except FedcmpError as caught:
        error = caught
    if error is not None and team.topology.group_size > 1:
        raise error  # the others of this group wait inside the step: only ending this rank frees them
    team.agree(error)
    trained.contributions.sort(key=lambda one: one.client_id)
    found = trained if leads(team) else WaveResult([], {}, [])
    if here.attack is None:
        return found
    return attack_round(here.attack, found, before, plan.round, team, federation.plan.num_clients)


def train_survivors(
    train: Callable[[Sequence[ClientTask]], WaveResult], wave: Sequence[ClientTask], tries: int
) -> WaveResult:
    """Trains a wave; where it fails, its clients one by one, up to ``tries`` times each.

    An error in a stack of clients does not show whose it is. Trained alone, a client meets its own errors only, and has
    the numbers of a stack of one.

    Args:
        train: trains clients together, and raises what goes wrong in one of them.
        wave: the clients.
        tries: as ``TRIES`` has it.
    """
    if tries == 0:
        return train(wave)
    if len(wave) > 1:
        try:
            return train(wave)
        except Exception as error:
            log.warning("%s; its clients are trained again, one by one", error)
    found = WaveResult([], {}, [])
    for task in wave:
        for failures in range(tries):
            try:
                (sent,), states, _ = train([task])
            except Exception as error:
                if failures + 1 < tries:
                    continue
                log.warning("round %d: client %d is left out", task.round + 1, task.client_id, exc_info=error)
                cause = error.__cause__ or error
                reason = mask(f"it failed: {type(cause).__name__}: {str(cause).partition(chr(10))[0]}")
                found.failed.append(Failure(task.client_id, reason, tries))
            else:
                found.contributions.append(replace(sent, scalars={**sent.scalars, "failures": failures}))
                found.states.update(states)
                break
    return found


def coming_batches(federation: Federation, rounds_done: int) -> list[list[int]]:
    """The samples that this rank will fetch from a round on, batch by batch, in the order in which it trains them."""
    topology = federation.team.topology
    group, place = topology.group(federation.team.rank), topology.place(federation.team.rank)
    return [
        wave_rows(wave, step, place, topology.group_size)
        for plan in federation.rounds[rounds_done:]
        for wave in assign_waves(plan.tasks, federation.config.slots, topology)[group]
        for step in range(max(len(task.batches) for task in wave))
    ]


def hand_out(team: Team, kept: LocalStates, clients: Sequence[int], mine: frozenset[int]) -> LocalStates:
    """What ``clients`` kept, from the server to the ranks that train them: this one ``mine``.

    One client's state is under way at a time.
    """
    found: LocalStates = {}
    for client in team.share([client for client in clients if client in kept]):
        state = team.share(kept.get(client))
        if client in mine:
            found[client] = state or {}
    return found


def bring_back(team: Team, new: LocalStates, owners: Mapping[int, int]) -> LocalStates:
    """What the clients of all ranks keep (``new``: those of this one), at the server; elsewhere it is empty.

    ``owners`` has the rank that speaks for each accepted client, the same on every rank.
    """
    present = {client for part in team.collect(sorted(new) if leads(team) else []) for client in part}
    found: LocalStates = {}
    for client in sorted(present & owners.keys()):
        state = team.share(new.get(client), owners[client])
        if is_server(team):
            found[client] = state or {}
    return found


def _train(
    here: Here,
    federation: Federation,
    plan: RoundPlan,
    common: LocalRound,
    before: LocalStates,
    on_step: Callable[[int], None],
    wave: Sequence[ClientTask],
) -> WaveResult:
    try:
        return train_wave(here.module, here.fetch, wave, common, before, on_step)
    except FedcmpError:
        raise
    except Exception as error:
        ids = [task.client_id for task in wave]
        who = [label_client(client, federation.plan.names) for client in ids]
        raise ClientError(ids[0], f"train, round {plan.round + 1}", f"{type(error).__name__}: {error}", who) from error
