"""Both sides of secure aggregation, for one sum, and all that they send each other."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedcmp.errors import AggregationError
from fedcmp.secure.crypto import (
    KEY_BYTES,
    SHARE_BYTES,
    Entropy,
    Words,
    add_mask,
    commit,
    join,
    key_pair,
    mask_key,
    seal,
    split,
    unseal,
)

NUMBER_BYTES = 4
"""Of an id, a count or an exponent."""


class Advertisement(NamedTuple):
    """Step 0, client to server; the server passes all of them on to every client."""

    client: int
    letters: bytes
    """X25519 public key under which letters are sealed."""
    masks: bytes
    """X25519 public key from which masks are agreed."""
    commitment: bytes
    """SHA-256 commitment to the key of the self mask. (Differs from the paper, which has none.)"""


class Shares(NamedTuple):
    """Step 1, client to server; each letter goes on to its receiver."""

    client: int
    sealed: Mapping[int, bytes]
    """By receiver, one share of the private mask key and one of the key of the self mask, sealed."""


class Masked(NamedTuple):
    """Step 2, client to server: ``x_u`` plus masks, modulo 2^64."""

    client: int
    words: Words


class Answer(NamedTuple):
    """Step 3, client to server, after it got the list of survivors.

    Of one client it holds a share of the one secret or of the other, never of both.
    """

    client: int
    own: Mapping[int, bytes]
    """By client that has sent its words, a share of the key of its self mask."""
    lost: Mapping[int, bytes]
    """By client that has not, a share of its private mask key."""


def num_bytes(message: Any) -> int:
    """The size of a message: its bytes and words, and four bytes for every id.

    >>> num_bytes(Shares(3, {1: b"x" * 82, 2: b"x" * 82})), num_bytes(Masked(3, np.zeros(5, np.uint64)))
    (176, 44)
    """
    if isinstance(message, int):
        return NUMBER_BYTES
    if isinstance(message, np.ndarray):
        return int(message.nbytes)
    if isinstance(message, bytes):
        return len(message)
    if isinstance(message, Mapping):
        return sum(num_bytes(key) + num_bytes(value) for key, value in message.items())
    return sum(map(num_bytes, message))


def threshold(num_clients: int) -> int:
    """t = K - floor(K/3): so many must stay to the end, so that floor(K/3) may be lost.

    That many clients together can open masks, fewer cannot. Since t > K/2, both secrets of one client open only if at
    least K/3 clients collude with the server.

    >>> [threshold(count) for count in (2, 3, 4, 6, 8, 100)]
    [2, 2, 3, 4, 6, 67]
    """
    return num_clients - num_clients // 3


class Client:
    """One client, for one sum: every key is new and is used once. Its steps are called once each, in their order.

    Each step raises an AggregationError if fewer clients than the threshold go on, one does so twice, one is not known,
    or a letter was changed on its way.

    Args:
        client_id: its id.
        threshold: t: with fewer clients it refuses to go on.
        entropy: the source of its keys.
    """

    def __init__(self, client_id: int, threshold: int, entropy: Entropy = os.urandom) -> None:
        self.client_id, self._threshold, self._entropy = client_id, threshold, entropy
        self._letters, self._masks = key_pair(entropy(KEY_BYTES)), key_pair(entropy(KEY_BYTES))
        self._own = entropy(KEY_BYTES)
        self._roster: dict[int, Advertisement] = {}
        self._held: dict[int, bytes] = {}
        """By client that has shared its secrets, itself too: both of its shares for this one."""
        self._answered = False

    def advertise(self) -> Advertisement:
        """Step 0: two public keys and a commitment."""
        return Advertisement(self.client_id, self._letters.public, self._masks.public, commit(self._own))

    def share(self, roster: Sequence[Advertisement]) -> Shares:
        """Step 1: shares of both secrets, one letter to each other client.

        Args:
            roster: what all clients advertised, this one too; the same for every client.
        """
        self._roster = {one.client: one for one in roster}
        self._require([one.client for one in roster], self._roster.keys(), "advertised keys")
        points = _points(self._roster)
        keys = split(self._masks.private, self._threshold, list(points.values()), self._entropy)
        owns = split(self._own, self._threshold, list(points.values()), self._entropy)
        pairs = {client: keys[point] + owns[point] for client, point in points.items()}
        self._held[self.client_id] = pairs.pop(self.client_id)
        private, me = self._letters.private, self.client_id
        return Shares(me, {to: seal(pair, private, self._roster[to].letters, me, to) for to, pair in pairs.items()})

    def mask(self, sealed: Mapping[int, bytes], words: Words) -> Masked:
        """Step 2: ``x_u + stream(b_u) + sum_{v > u} stream(s_uv) - sum_{v < u} stream(s_uv)`` modulo 2^64.

        Args:
            sealed: by sender, the letters for this client. A client that sent none takes no part.
            words: x_u, not changed.
        """
        for sender, letter in sealed.items():
            shares = unseal(letter, self._letters.private, self._roster[sender].letters, sender, self.client_id)
            if shares is None or len(shares) != 2 * SHARE_BYTES:
                raise AggregationError(f"the shares from client {sender} to {self.client_id} were changed on their way")
            self._held[sender] = shares
        self._require(list(self._held), self._roster.keys(), "shared their secrets")
        masked = words.copy()
        add_mask(masked, self._own)
        for other in sorted(self._held.keys() - {self.client_id}):
            key = mask_key(self._masks.private, self._roster[other].masks, self.client_id, other)
            add_mask(masked, key, 1 if self.client_id < other else -1)
        return Masked(self.client_id, masked)

    def answer(self, survivors: Sequence[int]) -> Answer:
        """Step 3: a share of the self mask's key of each survivor, and of the mask key of each other one.

        It answers once: a second question could reveal the other secret of a client.
        """
        self._require(survivors, self._held.keys(), "sent their words")
        if self._answered:
            raise AggregationError(f"client {self.client_id} answers once")
        self._answered = True
        lost = self._held.keys() - set(survivors)
        return Answer(
            self.client_id,
            {client: self._held[client][SHARE_BYTES:] for client in sorted(survivors)},
            {client: self._held[client][:SHARE_BYTES] for client in sorted(lost)},
        )

    def _require(self, clients: Sequence[int], known: Collection[int], what: str) -> None:
        """Enough different clients, all of them known."""
        if len(clients) < self._threshold or len(set(clients)) < len(clients) or not set(clients) <= set(known):
            raise AggregationError(
                f"client {self.client_id} does not go on with secure aggregation: clients {list(clients)} {what}, and "
                f"{self._threshold} different ones that took part are needed"
            )


class Server:
    """The server, for one sum: it passes letters on, adds masked words, and removes the masks.

    It holds one sum of words, whatever K; keys and shares beside it grow with K. Each step raises an AggregationError
    if fewer clients than needed go on, one does so twice or without being asked, or a share is wrong.

    Args:
        num_clients: K, the clients that were asked.
        least: the fewest clients that must stay, if more than the threshold.

    Raises:
        AggregationError: fewer than 2: the sum would be the term.
    """

    def __init__(self, num_clients: int, least: int = 0) -> None:
        if num_clients < 2:
            raise AggregationError(
                f"secure aggregation needs at least 2 clients, got {num_clients}: the sum over one client is its term"
            )
        self._asked, self._needed = num_clients, max(threshold(num_clients), least)
        self._roster: dict[int, Advertisement] = {}
        self._shared: set[int] = set()
        self._sent: list[int] = []
        self._total: Words | None = None

    def roster(self, advertised: Iterable[Advertisement]) -> tuple[Advertisement, ...]:
        """Step 0: the keys that every client gets, by id."""
        found = sorted(advertised)
        self._roster = {one.client: one for one in found}
        self._require([one.client for one in found], "advertised keys")
        return tuple(found)

    def deliver(self, shares: Iterable[Shares]) -> dict[int, dict[int, bytes]]:
        """Step 1: by receiver and sender, the letters, among those who have sent theirs."""
        found = {one.client: one.sealed for one in shares}
        self._require(list(found), "shared their secrets")
        self._shared = set(found)
        return {
            receiver: {sender: sealed[receiver] for sender, sealed in sorted(found.items()) if sender != receiver}
            for receiver in sorted(found)
        }

    def add(self, masked: Masked) -> None:
        """Step 2: adds one client's masked words to the sum."""
        if self._total is None:
            self._total = np.zeros_like(masked.words)
        if masked.client not in self._shared or masked.client in self._sent or len(masked.words) != len(self._total):
            raise AggregationError(f"client {masked.client} sent words that it was not asked for")
        self._total += masked.words
        self._sent.append(masked.client)

    def survivors(self) -> tuple[int, ...]:
        """Step 3: the clients that sent their words; every client gets the list."""
        self._require(self._sent, "sent their words")
        return tuple(sorted(self._sent))

    def finish(self, answers: Sequence[Answer]) -> Words:
        """The sum over the survivors, modulo 2^64."""
        self._require([one.client for one in answers], "answered")
        assert self._total is not None, "there are survivors"
        total, survivors = self._total, self.survivors()
        for client in survivors:
            own = self._joined({one.client: one.own[client] for one in answers})
            if own is None or commit(own) != self._roster[client].commitment:
                raise _wrong_share(client, answers)
            add_mask(total, own, -1)
        for client in sorted(self._shared - set(survivors)):
            private = self._joined({one.client: one.lost[client] for one in answers})
            if private is None or key_pair(private).public != self._roster[client].masks:
                raise _wrong_share(client, answers)
            for other in survivors:  # the mask that the survivor has added for a client whose words are not here
                key = mask_key(private, self._roster[other].masks, client, other)
                add_mask(total, key, -1 if other < client else 1)
        self._total = None
        return total

    def _joined(self, shares: Mapping[int, bytes]) -> bytes | None:
        """A secret from the first t shares, by sender."""
        points = _points(self._roster)
        return join({points[sender]: share for sender, share in sorted(shares.items())[: self._needed]})

    def _require(self, clients: Sequence[int], what: str) -> None:
        if len(set(clients)) < len(clients):
            raise AggregationError(f"of the clients that {what} one did so twice: {list(clients)}")
        if len(clients) < self._needed:
            raise AggregationError(
                f"only {len(clients)} of {self._asked} clients {what}, and secure aggregation needs {self._needed}"
            )


def _points(roster: Iterable[int]) -> dict[int, int]:
    """By client, where the polynomials of secrets are evaluated for it: 1, 2, ..."""
    return {client: place for place, client in enumerate(sorted(roster), 1)}


def _wrong_share(client: int, answers: Sequence[Answer]) -> AggregationError:
    senders = sorted(one.client for one in answers)
    return AggregationError(f"a share of a secret of client {client} is wrong; one of the clients {senders} sent it")
