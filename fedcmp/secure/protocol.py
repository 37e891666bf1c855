"""Secure aggregation from its first message to its result, all parties in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from fedcmp.secure.crypto import Entropy, Words
from fedcmp.secure.parties import Client, Server, num_bytes, threshold

M = TypeVar("M")


class Losses(NamedTuple):
    """The clients that are lost, by the step before which it happens."""

    shares: frozenset[int] = frozenset()
    words: frozenset[int] = frozenset()
    """Others have added masks for them; those are recovered from shares."""
    answer: frozenset[int] = frozenset()
    """Their words count."""


class Costs(NamedTuple):
    """What one sum cost; costs of several add up."""

    up: int = 0
    """Bytes from all clients to the server."""
    down: int = 0
    """Bytes from the server to all clients."""
    client_seconds: float = 0.0
    """Processor time of all clients, one after the other; on machines of their own they would work at once."""
    server_seconds: float = 0.0
    """Processor time of the server."""

    def plus(self, other: Costs) -> Costs:
        """Both."""
        return Costs._make(one + two for one, two in zip(self, other, strict=True))


class Summed(NamedTuple):
    """The sum over the survivors, modulo 2^64."""

    total: Words
    survivors: tuple[int, ...]
    costs: Costs


def secure_sum(
    clients: Sequence[int],
    terms: Iterable[Words],
    losses: Losses | None = None,
    *,
    least: int = 0,
    entropy: Entropy = os.urandom,
    watch: Callable[[Any], None] = lambda message: None,
) -> Summed:
    """``sum_k x_k`` modulo 2^64 over the clients that are not lost, by the messages of the protocol.

    Args:
        clients: K different ids, K at least 2.
        terms: x_k ``[n]`` in their order, one for each client, whether it is lost or not; read one by one, so that
            memory does not depend on K.
        losses: the clients that are lost; None: none.
        least: the fewest clients that must stay to the end, if more than two thirds; at most K.
        entropy: the source of all keys.
        watch: is called with every message that the server gets: its whole view.

    Raises:
        AggregationError: more than a third is lost, or fewer than ``least`` stay.

    >>> import numpy as np
    >>> summed = secure_sum([2, 5, 7], [np.array([term], np.uint64) for term in (1, 20, 300)])
    >>> summed.total.tolist(), summed.survivors
    ([321], (2, 5, 7))
    """
    losses = losses or Losses()
    gone = losses.shares
    spent = {"client": 0.0, "server": 0.0}
    up = down = 0

    def sent(message: M) -> M:
        nonlocal up
        up += num_bytes(message)
        watch(message)
        return message

    server = Server(len(clients), least)
    needed = max(threshold(len(clients)), least)
    with _timed(spent, "client"):
        parties = {one: Client(one, needed, entropy) for one in clients}
        advertised = [sent(party.advertise()) for party in parties.values()]
    with _timed(spent, "server"):
        roster = server.roster(advertised)
    down += num_bytes(roster) * len(parties.keys() - gone)
    with _timed(spent, "client"):
        shares = [sent(party.share(roster)) for one, party in parties.items() if one not in gone]
    with _timed(spent, "server"):
        letters = server.deliver(shares)
    gone |= losses.words
    down += sum(num_bytes(letters[one]) for one in letters.keys() - gone)
    for one, words in zip(clients, terms, strict=True):
        if one not in gone:
            with _timed(spent, "client"):
                masked = parties[one].mask(letters[one], words)
            with _timed(spent, "server"):
                server.add(sent(masked))
            del masked
    survivors = server.survivors()
    down += num_bytes(survivors) * len(survivors)
    with _timed(spent, "client"):
        answers = [sent(parties[one].answer(survivors)) for one in survivors if one not in losses.answer]
    with _timed(spent, "server"):
        total = server.finish(answers)
    return Summed(total, survivors, Costs(up, down, spent["client"], spent["server"]))


@contextmanager
def _timed(spent: dict[str, float], party: str) -> Iterator[None]:
    t0 = time.thread_time()
    yield
    spent[party] += time.thread_time() - t0
