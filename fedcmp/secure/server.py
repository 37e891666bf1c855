"""The server's side of secure aggregation: it passes letters on, adds masked words, and removes the masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from fedcmp.errors import AggregationError
from fedcmp.secure.keys import commit, key_pair, mask_key
from fedcmp.secure.masks import Words, add_mask
from fedcmp.secure.messages import Advertisement, Answer, Masked, Shares
from fedcmp.secure.shamir import join


def threshold(num_clients: int) -> int:
    """t = K - floor(K/3): so many must stay to the end, so that floor(K/3) may be lost.

    That many clients together can open masks, fewer cannot. Since t > K/2, both secrets of one client open only if at
    least K/3 clients collude with the server.

    >>> [threshold(count) for count in (2, 3, 4, 6, 8, 100)]
    [2, 2, 3, 4, 6, 67]
    """
    return num_clients - num_clients // 3


class Server:
    """The server, for one sum. It holds one sum of words, whatever K; keys and shares beside it grow with K.

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
        """Step 0: the keys that every client gets, by id.

        Raises:
            AggregationError: fewer than the threshold, or a client twice.
        """
        found = sorted(advertised, key=lambda one: one.client)
        self._roster = {one.client: one for one in found}
        if len(self._roster) < len(found):
            raise AggregationError(f"a client advertised keys twice: {[one.client for one in found]}")
        self._require(self._roster, "advertised keys")
        return tuple(found)

    def deliver(self, shares: Iterable[Shares]) -> dict[int, dict[int, bytes]]:
        """Step 1: by receiver and sender, the letters, among those who have sent theirs.

        Raises:
            AggregationError: fewer than the threshold.
        """
        found = {one.client: one.sealed for one in shares}
        self._require(found, "shared their secrets")
        self._shared = set(found)
        return {
            receiver: {sender: sealed[receiver] for sender, sealed in sorted(found.items()) if sender != receiver}
            for receiver in sorted(found)
        }

    def add(self, masked: Masked) -> None:
        """Step 2: adds one client's masked words to the sum.

        Raises:
            AggregationError: the client took no part so far, sent twice, or sent another number of words.
        """
        if masked.client not in self._shared or masked.client in self._sent:
            raise AggregationError(f"client {masked.client} sent words without being asked")
        if self._total is None:
            self._total = masked.words.copy()
        elif masked.words.shape != self._total.shape:
            raise AggregationError(
                f"client {masked.client} sent {masked.words.shape[0]} words, others {self._total.shape[0]}"
            )
        else:
            self._total += masked.words
        self._sent.append(masked.client)

    def survivors(self) -> tuple[int, ...]:
        """Step 3: the clients that sent their words; every client gets the list.

        Raises:
            AggregationError: fewer than the threshold.
        """
        self._require(self._sent, "sent their words")
        return tuple(sorted(self._sent))

    def finish(self, answers: Sequence[Answer]) -> Words:
        """The sum over the survivors, modulo 2^64.

        Raises:
            AggregationError: fewer answers than the threshold, or a share that is wrong.
        """
        self._require([one.client for one in answers], "answered")
        assert self._total is not None, "there are survivors"
        total, survivors = self._total, self.survivors()
        for client in survivors:
            own = self._joined(client, {one.client: one.own[client] for one in answers}, self._is_own)
            add_mask(total, own, -1)
        for client in sorted(self._shared - set(survivors)):
            private = self._joined(client, {one.client: one.lost[client] for one in answers}, self._is_private)
            for other in survivors:  # the mask that the survivor has added for a client whose words are not here
                key = mask_key(private, self._roster[other].masks, client, other)
                add_mask(total, key, -1 if other < client else 1)
        self._total = None
        return total

    def _joined(self, client: int, shares: Mapping[int, bytes], is_right: Callable[[int, bytes], bool]) -> bytes:
        """A secret of ``client`` from the first t shares, by sender; checked against what it advertised."""
        points = {one: place for place, one in enumerate(sorted(self._roster), 1)}
        chosen = dict(islice(sorted(shares.items()), self._needed))
        secret = join({points[sender]: share for sender, share in chosen.items()})
        if secret is None or not is_right(client, secret):
            raise AggregationError(
                f"the shares of a secret of client {client} do not give what it advertised: one of the clients "
                f"{list(chosen)} sent a wrong share"
            )
        return secret

    def _is_own(self, client: int, secret: bytes) -> bool:
        return commit(secret) == self._roster[client].commitment

    def _is_private(self, client: int, secret: bytes) -> bool:
        return key_pair(secret).public == self._roster[client].masks

    def _require(self, clients: Iterable[int], what: str) -> None:
        here = len(set(clients))
        if here < self._needed:
            spare = self._asked - self._needed
            most = f"at most a third, {spare}," if self._needed == threshold(self._asked) else f"at most {spare}"
            raise AggregationError(
                f"only {here} of {self._asked} clients {what}, and secure aggregation needs {self._needed}: {most} may "
                "be lost"
            )
