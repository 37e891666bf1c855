"""A round's local training: waves of clients, assigned to the groups of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fedcmp.distributed.team import leads
from fedcmp.errors import ClientError, FedcmpError, label_client
from fedcmp.federation.byzantine import attack_round
from fedcmp.federation.client import LocalStates, WaveResult, train_wave, wave_rows
from fedcmp.federation.faults import Survived, train_survivors
from fedcmp.federation.federation import Federation
from fedcmp.federation.keeping import hand_out
from fedcmp.federation.sampling import ClientTask, RoundPlan, assign_waves
from fedcmp.federation.state import FederationState


def train_round(federation: Federation, state: FederationState, plan: RoundPlan) -> Survived:
    """Trains the waves of this rank's group, one after the other.

    Returns:
        The contributions that this rank speaks for, by client id (empty where it does not lead its group), what those
        clients keep, and who failed.

    Raises:
        ClientError: a client failed, here or in another group, and ``federation.on_client_error`` is ``raise``; every
            rank raises it.
    """
    team = federation.team
    mine = assign_waves(plan.tasks, federation.config.slots, team.topology)[team.topology.group(team.rank)]
    clients = frozenset(task.client_id for wave in mine for task in wave)
    before = hand_out(team, state.local, [task.client_id for task in plan.tasks], clients)
    trained = Survived([], {}, [])
    tries = {"raise": 0, "skip": 1, "retry": 2}[federation.config.on_client_error]
    error: Exception | None = None
    samples = sum(task.num_samples for wave in mine for task in wave)
    total, of_round = federation.plan.num_samples, plan.num_samples  # sums over all clients: not for every wave

    def progress(share: float) -> float:
        return (plan.samples_before + share * of_round) / total

    what = f"round {plan.round + 1}, samples of this group"
    try:
        with federation.progress.bar(samples, what, pause=60) as bar:
            for number, wave in enumerate(mine, 1):
                done = {"wave": f"{number}/{len(mine)}", "clients done": f"{len(trained.contributions)}/{len(clients)}"}
                train = partial(_train, federation, state, plan, progress, before, partial(bar, shown=done))
                found = train_survivors(train, wave, tries) if tries else Survived(*train(wave), [])
                trained.contributions.extend(found.contributions)
                trained.states.update(found.states)
                trained.failed.extend(found.failed)
    except FedcmpError as caught:
        error = caught
    if error is not None and team.topology.group_size > 1:
        raise error  # the others of this group wait inside the step: only ending this rank frees them
    team.agree(error)
    ordered = sorted(trained.contributions, key=lambda one: one.client_id)
    found = trained._replace(contributions=ordered) if leads(team) else Survived([], {}, [])
    if federation.attack is None:
        return found
    return attack_round(federation.attack, found, before, plan.round, team, federation.plan.num_clients)


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


def _train(
    federation: Federation,
    state: FederationState,
    plan: RoundPlan,
    progress: Callable[[float], float],
    before: LocalStates,
    on_step: Callable[[int], None],
    wave: Sequence[ClientTask],
) -> WaveResult:
    try:
        return train_wave(
            federation.module,
            state.params,
            wave,
            federation.fetch,
            federation.optimizer,
            progress,
            needs=federation.aggregator.needs,
            local=federation.aggregator.local,
            shared=state.aggregator["local"],
            states=before,
            keep_optimizer=federation.config.keep_local_state,
            team=federation.team,
            on_step=on_step,
        )
    except FedcmpError:
        raise
    except Exception as error:
        ids = [task.client_id for task in wave]
        who = [label_client(client, federation.plan.names) for client in ids]
        raise ClientError(ids[0], f"train, round {plan.round + 1}", f"{type(error).__name__}: {error}", who) from error
