"""Who trains when, and on which samples: pure, so that every rank and every restart computes the same plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import numpy as np

from fedcmp.distributed.team import Topology, assign
from fedcmp.errors import PlanError, label_client
from fedcmp.federation.settings import FederationConfig
from fedcmp.seeding import derive, numpy_rng


class ClientTask(NamedTuple):
    """What one client does in one round."""

    round: int
    client_id: int
    seed: int
    """The client's own stream in this round."""
    batches: tuple[tuple[int, ...], ...]
    """The sample indices of each local step."""

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.batches))


class RoundPlan(NamedTuple):
    """One round."""

    round: int
    tasks: tuple[ClientTask, ...]
    """By client id."""
    samples_before: int
    dropped: tuple[int, ...] = ()
    """Clients that were chosen and do not report; they use no samples in this round."""

    @property
    def num_samples(self) -> int:
        return sum(task.num_samples for task in self.tasks)

    def progress(self, samples_of_run: int) -> Callable[[float], float]:
        """The share of this round that is done, in [0, 1], to the share of the run that is done."""
        of_round = self.num_samples  # a sum over all clients: not for every step
        return lambda share: (self.samples_before + share * of_round) / samples_of_run


class RunPlan(NamedTuple):
    """The whole run."""

    rounds: tuple[RoundPlan, ...]
    num_samples: int
    num_clients: int
    """Clients of the federation, in any round or in none."""
    names: tuple[str, ...] = ()
    """What they are called, by id."""


def plan_run(
    clients: Sequence[Sequence[int]],
    config: FederationConfig,
    seed: int,
    lengths: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> RunPlan:
    """The cohort of every round and the samples of every local step.

    Each client walks once (``passes`` times) through its samples in an order of its own and never sees half a batch.
    A cohort is drawn from the clients that have samples left, and each of them trains, unless the last batches must
    do for the rounds to come. Where all clients take part in every round, one that has fewer batches than there are
    rounds rests in some. Whether a chosen client drops out of a round depends on seed, round and client alone.

    Args:
        clients: the sample indices of each client.
        config: rounds, batch size, cohort size, passes, drop-out.
        seed: the run's seed.
        lengths: of each sample's caption, in any unit; given, those of a client's round that are alike in length share
            a batch. Which samples a round has does not depend on it.
        names: what the clients are called, for messages; empty: by their numbers.

    Raises:
        PlanError: a client has fewer samples than one batch, or no client has samples for a round.
    """
    few = min(range(len(clients)), key=lambda client: len(clients[client]))
    size, least = config.batch_size, len(clients[few])
    orders: list[list[int]] = [[] for _ in clients]
    for client, indices in enumerate(clients):
        for number in range(config.passes):
            orders[client] += numpy_rng(seed, "order", client, number).permutation(np.asarray(indices)).tolist()
    found = _plan(orders, config, seed, lengths) if least >= size else 0
    if isinstance(found, RunPlan):
        return found._replace(names=tuple(names or map(str, range(len(clients)))))
    fits = _fitting(orders, config, seed, min(size, least))
    advice = f"; set {fits}, which fits the data" if fits else ""
    problem = f"{label_client(few, names)} has {least} samples, fewer than federation.batch_size={size}"
    if least >= size:
        problem = f"no client has samples for round {found + 1} of federation.rounds={config.rounds}"
    raise PlanError(problem + advice, fits)


def _fitting(orders: list[list[int]], config: FederationConfig, seed: int, size: int) -> str:
    """Overrides that fit: batches of ``size``, or of its halves, where they balance rows and rounds better."""
    found = []
    while size:
        smaller, most = replace(config, batch_size=size), max(map(len, orders)) // size
        while not isinstance(fits := _plan(orders, smaller, seed, None), RunPlan):
            # with fewer rounds clients take more in each
            smaller = replace(smaller, rounds=max(fits, most) if smaller.rounds > most else fits)
        found.append((min(size, smaller.rounds), size, smaller.rounds))
        size //= 2
    if not found:
        return ""
    _, size, rounds = max(found)
    changed = {"batch_size": size, "rounds": rounds}
    return " ".join(f"federation.{key}={value}" for key, value in changed.items() if value != getattr(config, key))


def _plan(orders: list[list[int]], config: FederationConfig, seed: int, lengths: Sequence[int] | None) -> RunPlan | int:
    """The plan, or the round for which no client has samples."""
    size, num_clients, num_rounds = config.batch_size, len(orders), config.rounds
    cohort_size = min(config.clients_per_round or num_clients, num_clients)
    budgets = [len(order) // size for order in orders]  # local steps that each client has in all
    everybody = cohort_size == num_clients
    # rounds that a client takes part in
    expected = max(1, round(num_rounds * ((1 - config.dropout) * cohort_size / num_clients)))
    used, turns, samples = [0] * num_clients, [0] * num_clients, 0
    rounds = []
    for index in range(num_rounds):
        ready: dict[int, int] = {}  # local steps of this round
        able = [client for client in range(num_clients) if used[client] < budgets[client]]
        room = sum(budgets) - sum(used) - (num_rounds - index - 1)  # who comes later has a step, too
        turns_left = (num_rounds - index) * (1 - config.dropout) * min(1.0, cohort_size / max(1, len(able)))
        drawn = able
        if not everybody:
            stream = numpy_rng(seed, "cohort", index)
            drawn = sorted(
                stream.choice(np.asarray(able, dtype=int), min(cohort_size, len(able)), replace=False).tolist()
            )
        for client in drawn:
            left = budgets[client] - used[client]
            share = -(-budgets[client] * (turns[client] + 1) // expected) - used[client]
            if not everybody:  # each drawn client trains; its samples last, however often it is drawn
                share = min(max(1, min(share, ceil(left / max(1.0, turns_left)))), max(int(not ready), room))
            steps = min(config.local_steps or share, left)
            room -= steps
            if steps:
                ready[client] = steps
            else:
                turns[client] += 1  # its samples are few for its rounds: it rests
        luck = {one: float(numpy_rng(seed, "dropout", index, one).random()) for one in ready if config.dropout}
        dropped = unlucky(luck, config.dropout, len(ready) - config.min_clients)
        tasks = []
        for client in [one for one in ready if one not in dropped]:
            begin, end = used[client] * size, (used[client] + ready[client]) * size
            batches = _batches(orders[client][begin:end], ready[client], index, seed, lengths)
            tasks.append(ClientTask(index, client, derive(seed, "client", index, client), batches))
            turns[client] += 1
            used[client] += ready[client]
        if not tasks:
            return index
        rounds.append(RoundPlan(index, tuple(tasks), samples, tuple(sorted(dropped))))
        samples += rounds[-1].num_samples
    return RunPlan(tuple(rounds), samples, num_clients)


def plan_hash(plan: RunPlan) -> str:
    """SHA-256 of who trains on which samples in which round, and of their random streams."""
    rounds = [[[*map(list, one.tasks)], list(one.dropped)] for one in plan.rounds]
    return hashlib.sha256(json.dumps(rounds).encode()).hexdigest()


def _batches(
    samples: list[int], steps: int, index: int, seed: int, lengths: Sequence[int] | None
) -> tuple[tuple[int, ...], ...]:
    """A client's samples of a round, cut into its local steps."""
    if lengths is None:
        places = list(range(steps))
    else:
        # all clients of as many steps have short captions in the same step: in a wave, too, rows are alike in length
        samples = sorted(samples, key=lambda sample: lengths[sample])
        places = numpy_rng(seed, "lengths", index).permutation(steps).tolist()
    size = len(samples) // steps
    return tuple(tuple(samples[place * size : (place + 1) * size]) for place in places)


def next_batch(rounds: Sequence[RoundPlan], client: int) -> tuple[int, ...] | None:
    """The first batch of a client in these rounds; None: it trains in none of them."""
    return next((task.batches[0] for plan in rounds for task in plan.tasks if task.client_id == client), None)


def unlucky(luck: Mapping[int, float], probability: float, most: int) -> frozenset[int]:
    """Up to ``most`` of the clients whose luck, in [0, 1), is below ``probability``: the likeliest to stay do so."""
    found = sorted((client for client in luck if luck[client] < probability), key=lambda client: luck[client])
    return frozenset(found[: max(0, most)])


def assign_waves(
    tasks: Sequence[ClientTask], slots: int, topology: Topology
) -> tuple[tuple[tuple[ClientTask, ...], ...], ...]:
    """The waves of a round that each group of ranks trains, in the order in which it trains them.

    A wave is of at most ``slots`` clients, which train together: long ones first, so that a wave ends together.
    """
    ordered = sorted(tasks, key=lambda task: (-len(task.batches), task.client_id))
    waves = [tuple(ordered[begin : begin + slots]) for begin in range(0, len(ordered), slots)]
    assigned = assign([len(wave[0].batches) * len(wave) for wave in waves], topology.num_groups)
    return tuple(tuple(waves[number] for number in numbers) for numbers in assigned)
