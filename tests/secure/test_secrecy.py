"""What the server sees of single terms: nothing. Shown by statistics, and by a construction.

The server's view of a sum are all messages that it gets; from the answers it takes off the self masks of those whose
words came, and knows the mask keys of the others. What is left of each client then is its term plus the masks of pairs
of survivors. The construction: for any other terms with the same sum there are other such masks, as likely as the
first, under which the server sees the very same words.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from fedcmp.secure import parties
from fedcmp.secure.crypto import add_mask, join, mask_key
from fedcmp.secure.parties import Advertisement, Answer, Client, Masked, Server, Shares, threshold
from fedcmp.secure.protocol import Losses, secure_sum


def view(parts: Sequence[np.ndarray], losses: Losses | None, entropy: Callable[[int], bytes]) -> list:
    """All that the server gets; keys from a seeded stream, so that the statistics repeat."""
    seen: list = []
    secure_sum(range(len(parts)), parts, losses, entropy=entropy, watch=seen.append)
    return seen


def words_of(seen: list) -> dict[int, np.ndarray]:
    return {one.client: one.words for one in seen if isinstance(one, Masked)}


def without_self_masks(seen: list, count: int) -> dict[int, np.ndarray]:
    """As far as the server can go with one client's words: it joins the shares that it was sent."""
    answers = [one for one in seen if isinstance(one, Answer)][: threshold(count)]
    left = {}
    for client, words in words_of(seen).items():
        left[client] = words.copy()
        own = join({one.client + 1: one.own[client] for one in answers})
        assert own is not None
        add_mask(left[client], own, -1)
    return left


def is_uniform(words: np.ndarray) -> bool:
    return bool(stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-5)


def split_of(total: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Terms with this sum modulo 2^64."""
    parts = list(np.random.default_rng(seed).integers(0, 2**64, (count - 1, len(total)), np.uint64))
    return [*parts, total - np.sum(parts, axis=0, dtype=np.uint64)]


@pytest.mark.parametrize("losses", [None, Losses(words=frozenset({1, 4}))])
def test_what_the_server_sees_of_a_term_is_uniform_whatever_the_term(losses: Losses | None) -> None:
    """Terms that are all alike and tiny, the worst to hide."""
    seen = view([np.full(20_000, place, np.uint64) for place in range(6)], losses, random.Random(1).randbytes)
    assert {type(one) for one in seen} == {Advertisement, Shares, Masked, Answer}
    for found in (words_of(seen), without_self_masks(seen, 6)):
        clients = sorted(found)
        assert clients == ([0, 1, 2, 3, 4, 5] if losses is None else [0, 2, 3, 5])
        for client in clients:
            assert is_uniform(found[client])
        for one, other in itertools.pairwise(clients):
            assert is_uniform(found[one] - found[other]), "nor does the difference of two say anything"


@pytest.mark.parametrize("losses", [Losses(), Losses(words=frozenset({2, 5}))])
def test_for_any_terms_with_that_sum_there_are_masks_that_give_the_same_view(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bijection of masks: with an ideal generator both inputs give each view equally often."""
    K, n = 7, 9
    parts = list(np.random.default_rng(0).integers(0, 2**64, (K, n), np.uint64))
    left = [client for client in range(K) if client not in losses.words]
    others = [part.copy() for part in parts]
    total = np.sum([parts[client] for client in left], axis=0, dtype=np.uint64)
    for client, part in zip(left, split_of(total, len(left), seed=3), strict=True):
        others[client] = part
    pairs: dict[bytes, tuple[int, int]] = {}

    def noted(private: bytes, public: bytes, one: int, other: int) -> bytes:
        key = mask_key(private, public, one, other)
        pairs[key] = (min(one, other), max(one, other))
        return key

    monkeypatch.setattr(parties, "mask_key", noted)
    first = view(parts, losses, random.Random(5).randbytes)
    # along a chain of survivors, the mask of two neighbours takes what the terms before have gained
    shift, moved = np.zeros(n, np.uint64), {}
    for one, other in itertools.pairwise(left):
        shift = shift + parts[one] - others[one]
        moved[one, other] = shift

    def changed(words: np.ndarray, key: bytes, sign: int = 1) -> None:
        add_mask(words, key, sign)
        gained = moved.get(pairs.get(key, (-1, -1)))
        if gained is not None:
            words += gained if sign > 0 else -gained

    monkeypatch.setattr(parties, "add_mask", changed)
    second = view(others, losses, random.Random(5).randbytes)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        if isinstance(one, Masked):
            assert one.client == other.client
            assert np.array_equal(one.words, other.words)
        else:
            assert one == other
    assert not any(np.array_equal(parts[client], others[client]) for client in left), "the terms were others"


def test_a_late_message_reveals_nothing() -> None:
    """The server took a client for lost, had its mask key opened, and then its words arrive: the self mask holds."""
    parts = [np.full(20_000, 3, np.uint64) for _ in range(6)]
    server, clients = Server(6), {one: Client(one, threshold(6), random.Random(one).randbytes) for one in range(6)}
    roster = server.roster([client.advertise() for client in clients.values()])
    letters = server.deliver([client.share(roster) for client in clients.values()])
    late = clients[4].mask(letters[4], parts[4])
    for one in (0, 1, 2, 3, 5):
        server.add(clients[one].mask(letters[one], parts[one]))
    answers = [clients[one].answer(server.survivors()) for one in (0, 1, 2, 3, 5)]
    private = join({one.client + 1: one.lost[4] for one in answers})
    assert private is not None
    assert private == clients[4]._masks.private, "the server has its mask key"
    words = late.words.copy()
    for other in (0, 1, 2, 3, 5):
        key = mask_key(private, {one.client: one.masks for one in roster}[other], 4, other)
        add_mask(words, key, -1 if other > 4 else 1)
    assert is_uniform(words)
    assert all(4 not in one.own for one in answers)
    add_mask(words, clients[4]._own, -1)
    assert np.array_equal(words, parts[4]), "that one mask was all that was left"
