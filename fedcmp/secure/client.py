"""One client's side of secure aggregation. Its steps are called once each, in their order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from fedcmp.errors import AggregationError
from fedcmp.secure.keys import KEY_BYTES, commit, key_pair, mask_key, seal, unseal
from fedcmp.secure.masks import Words, add_mask
from fedcmp.secure.messages import Advertisement, Answer, Masked, Shares
from fedcmp.secure.shamir import SHARE_BYTES, Entropy, split


class Client:
    """One client, for one sum: every key is new and is used once.

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

        Raises:
            AggregationError: fewer clients than the threshold, or one twice.
        """
        self._roster = {one.client: one for one in roster}
        self._require(len(self._roster), "advertised keys")
        if len(self._roster) < len(roster) or self.client_id not in self._roster:
            raise AggregationError(f"client {self.client_id} was told of a client twice, or not of itself")
        points = {client: place for place, client in enumerate(sorted(self._roster), 1)}
        keys = split(self._masks.private, self._threshold, list(points.values()), self._entropy)
        owns = split(self._own, self._threshold, list(points.values()), self._entropy)
        pairs = {client: keys[point] + owns[point] for client, point in points.items()}
        self._held[self.client_id] = pairs.pop(self.client_id)
        return Shares(self.client_id, {client: self._seal(pair, client) for client, pair in pairs.items()})

    def mask(self, sealed: Mapping[int, bytes], words: Words) -> Masked:
        """Step 2: ``x_u + stream(b_u) + sum_{v > u} stream(s_uv) - sum_{v < u} stream(s_uv)`` modulo 2^64.

        Args:
            sealed: by sender, the letters for this client. A client that sent none takes no part.
            words: x_u, not changed.

        Raises:
            AggregationError: fewer clients than the threshold, or a letter that was changed on its way.
        """
        for sender, letter in sealed.items():
            self._held[sender] = self._open(letter, sender)
        self._require(len(self._held), "shared their secrets")
        masked = words.copy()
        add_mask(masked, self._own)
        for other in sorted(self._held.keys() - {self.client_id}):
            key = mask_key(self._masks.private, self._roster[other].masks, self.client_id, other)
            add_mask(masked, key, 1 if self.client_id < other else -1)
        return Masked(self.client_id, masked)

    def answer(self, survivors: Sequence[int]) -> Answer:
        """Step 3: a share of the self mask's key of each survivor, and of the mask key of each other one.

        Raises:
            AggregationError: fewer survivors than the threshold, one that took no part, or a second question, which
                could reveal the other secret of a client.
        """
        self._require(len(survivors), "sent their words")
        if self._answered or len(set(survivors)) < len(survivors) or not set(survivors) <= self._held.keys():
            raise AggregationError(f"client {self.client_id} answers once, about clients that took part: {survivors}")
        self._answered = True
        lost = self._held.keys() - set(survivors)
        return Answer(
            self.client_id,
            {client: self._held[client][SHARE_BYTES:] for client in sorted(survivors)},
            {client: self._held[client][:SHARE_BYTES] for client in sorted(lost)},
        )

    def _seal(self, letter: bytes, receiver: int) -> bytes:
        return seal(letter, self._letters.private, self._roster[receiver].letters, self.client_id, receiver)

    def _open(self, sealed: bytes, sender: int) -> bytes:
        public = self._roster[sender].letters
        letter = unseal(sealed, self._letters.private, public, sender, self.client_id)
        if letter is None or len(letter) != 2 * SHARE_BYTES:
            raise AggregationError(f"the shares from client {sender} to {self.client_id} were changed on their way")
        return letter

    def _require(self, count: int, what: str) -> None:
        if count < self._threshold:
            raise AggregationError(
                f"client {self.client_id} does not go on with secure aggregation: only {count} clients {what}, and "
                f"{self._threshold} are needed"
            )
