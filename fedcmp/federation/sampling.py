"""Who trains when, and on which samples: pure, so that every rank and every restart computes the same plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
        return sum(len(batch) for batch in self.batches)


class RoundPlan(NamedTuple):
    """One round: its tasks by client id, and the samples used before it."""

    round: int
    tasks: tuple[ClientTask, ...]
    samples_before: int
    dropped: tuple[int, ...] = ()
    """Clients that were chosen and do not report; they use no samples in this round."""

    @property
    def num_samples(self) -> int:
        return sum(task.num_samples for task in self.tasks)


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
    orders = [_order(indices, client, config.passes, seed) for client, indices in enumerate(clients)]
    found = _plan(orders, config, seed, lengths, config.rounds) if least >= size else 0
    if isinstance(found, RunPlan):
        return found._replace(names=tuple(names or map(str, range(len(clients)))))
    if least < size:
        problem = f"{label_client(few, names)} has {least} samples, fewer than one batch"
        problem += f" (federation.batch_size={size}); lower the number of clients (partition.clients)"
    else:
        problem = f"no client has samples for round {found + 1} of federation.rounds={config.rounds}"
        problem += "; raise federation.passes" + (", lower federation.local_steps" if config.local_steps else "")
    fits = _fitting(orders, config, seed, min(size, least))
    message = f"{problem}, or set what fits the data: {', or '.join(fits)}" if fits else problem
    raise PlanError(message, fits[-1] if fits else "")


def _fitting(orders: list[list[int]], config: FederationConfig, seed: int, size: int) -> list[str]:
    """Overrides that fit: for batches of ``size``, then, among its halves, too, where rounds and rows are balanced."""
    found = []
    while size:
        smaller, most, rounds = replace(config, batch_size=size), max(map(len, orders)) // size, config.rounds
        while not isinstance(fits := _plan(orders, smaller, seed, None, rounds), RunPlan):
            rounds = max(fits, most) if rounds > most else fits  # with fewer rounds clients take more in each
        changed = {"batch_size": size, "rounds": rounds}
        words = [f"federation.{key}={value}" for key, value in changed.items() if value != getattr(config, key)]
        found.append((min(size, rounds), size, " ".join(words)))
        size //= 2
    return list(dict.fromkeys(words for *_, words in [*found[:1], *sorted(found)[-1:]]))


def _plan(
    orders: list[list[int]], config: FederationConfig, seed: int, lengths: Sequence[int] | None, num_rounds: int
) -> RunPlan | int:
    """The plan, or the round for which no client has samples."""
    size, num_clients = config.batch_size, len(orders)
    cohort_size = min(config.clients_per_round or num_clients, num_clients)
    budgets = [len(order) // size for order in orders]  # local steps that each client has in all
    everybody = cohort_size == num_clients
    taking_part = (1 - config.dropout) * cohort_size / num_clients
    expected = max(1, round(num_rounds * taking_part))  # rounds that a client takes part in
    used, turns, samples = [0] * num_clients, [0] * num_clients, 0
    rounds = []
    for index in range(num_rounds):
        ready: dict[int, int] = {}  # local steps of this round
        able = [client for client in range(num_clients) if used[client] < budgets[client]]
        room = sum(budgets) - sum(used) - (num_rounds - index - 1)  # who comes later has a step, too
        turns_left = (num_rounds - index) * (1 - config.dropout) * min(1.0, cohort_size / max(1, len(able)))
        for client in able if everybody else _cohort(able, cohort_size, index, seed):
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
        dropped = _dropped(list(ready), config, index, seed)
        tasks = []
        for client, steps in ready.items():
            if client in dropped:
                continue
            turns[client] += 1
            begin = used[client] * size
            batches = _batches(orders[client][begin : begin + steps * size], steps, index, seed, lengths)
            tasks.append(ClientTask(index, client, derive(seed, "client", index, client), batches))
            used[client] += steps
        if not tasks:
            return index
        rounds.append(RoundPlan(index, tuple(tasks), samples, dropped))
        samples += rounds[-1].num_samples
    return RunPlan(tuple(rounds), samples, num_clients)


def plan_hash(plan: RunPlan) -> str:
    """SHA-256 of who trains on which samples in which round, and of their random streams."""
    rounds = [[[*map(list, one.tasks)], list(one.dropped)] for one in plan.rounds]
    return hashlib.sha256(json.dumps(rounds).encode()).hexdigest()


def _order(indices: Sequence[int], client: int, passes: int, seed: int) -> list[int]:
    order: list[int] = []
    for number in range(passes):
        order += numpy_rng(seed, "order", client, number).permutation(np.asarray(indices)).tolist()
    return order


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


def _cohort(able: Sequence[int], size: int, index: int, seed: int) -> list[int]:
    """``size`` of the clients that have samples left; all of them where they are fewer."""
    drawn = numpy_rng(seed, "cohort", index).choice(np.asarray(able, dtype=int), min(size, len(able)), replace=False)
    return sorted(drawn.tolist())


def _dropped(chosen: Sequence[int], config: FederationConfig, index: int, seed: int) -> tuple[int, ...]:
    """Those of a round's clients that do not report; ``min_clients`` stay, the likeliest to do so."""
    if not config.dropout:
        return ()
    luck = {client: float(numpy_rng(seed, "dropout", index, client).random()) for client in chosen}
    unlucky = sorted((client for client in chosen if luck[client] < config.dropout), key=lambda client: luck[client])
    return tuple(sorted(unlucky[: max(0, len(chosen) - config.min_clients)]))


def plan_waves(tasks: Sequence[ClientTask], slots: int) -> list[tuple[ClientTask, ...]]:
    """Tasks in waves of at most ``slots`` that train together: long ones first, so that a wave ends together."""
    ordered = sorted(tasks, key=lambda task: (-len(task.batches), task.client_id))
    return [tuple(ordered[begin : begin + slots]) for begin in range(0, len(ordered), slots)]


def assign_waves(
    tasks: Sequence[ClientTask], slots: int, topology: Topology
) -> tuple[tuple[tuple[ClientTask, ...], ...], ...]:
    """The waves of a round that each group of ranks trains, in the order in which it trains them."""
    waves = plan_waves(tasks, slots)
    assigned = assign([len(wave[0].batches) * len(wave) for wave in waves], topology.num_groups)
    return tuple(tuple(waves[number] for number in numbers) for numbers in assigned)
