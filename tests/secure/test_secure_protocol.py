"""The protocol from end to end: sums, losses, and wrong messages that are noticed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from fedcmp.errors import AggregationError
from fedcmp.secure import Client, Losses, Masked, Server, num_bytes, secure_sum, threshold

N = 5


def terms(count: int, size: int = N) -> list[np.ndarray]:
    return list(np.random.default_rng(count).integers(0, 2**64, (count, size), np.uint64))


def plain(parts: Sequence[np.ndarray]) -> list[int]:
    return [sum(map(int, column)) % 2**64 for column in zip(*parts, strict=True)]


def begun(ids: Sequence[int]) -> tuple[Server, dict[int, Client], dict[int, dict[int, bytes]]]:
    """A sum after its letters were delivered."""
    server, clients = Server(len(ids)), {one: Client(one, threshold(len(ids))) for one in ids}
    roster = server.roster([client.advertise() for client in clients.values()])
    return server, clients, server.deliver([client.share(roster) for client in clients.values()])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 13])
def test_the_sum_is_the_sum(count: int) -> None:
    ids = [7 * place + 2 for place in range(count)]
    parts = terms(count)
    before = [part.copy() for part in parts]
    summed = secure_sum(ids, parts)
    assert summed.total.tolist() == plain(parts)
    assert summed.survivors == tuple(ids)
    assert all(np.array_equal(part, old) for part, old in zip(parts, before, strict=True))
    assert secure_sum(ids, [np.zeros(0, np.uint64)] * count).total.shape == (0,)


@pytest.mark.parametrize("lost", list(itertools.combinations(range(6), 2)), ids=str)
def test_a_third_may_be_lost_whoever_and_whenever(lost: tuple[int, int]) -> None:
    ids, parts = [3, 5, 6, 8, 11, 20], terms(6)
    first, second = (frozenset({ids[place]}) for place in lost)
    both = first | second
    for losses in (
        Losses(shares=both),
        Losses(words=both),
        Losses(answer=both),
        Losses(shares=first, words=second),
        Losses(words=first, answer=second),
        Losses(shares=second, answer=first),
    ):
        summed = secure_sum(ids, parts, losses)
        left = [one for one in ids if one not in losses.shares | losses.words]
        assert summed.survivors == tuple(left)
        assert summed.total.tolist() == plain([parts[ids.index(one)] for one in left])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 8, 12])
def test_one_more_than_a_third_is_refused_at_every_step(count: int) -> None:
    most = count // 3
    few, many = frozenset(range(most)), frozenset(range(most + 1))
    for step in Losses._fields:
        secure_sum(range(count), terms(count), Losses(**{step: few}))
        with pytest.raises(AggregationError, match=f"only {count - most - 1} of {count} .* needs {count - most}:"):
            secure_sum(range(count), terms(count), Losses(**{step: many}))
    with pytest.raises(AggregationError, match="at least 2 clients, got 1"):
        secure_sum([4], terms(1))


@pytest.mark.parametrize(("kind", "about"), [("own", 2), ("lost", 5)])
@pytest.mark.parametrize("liar", [0, 3])
def test_a_wrong_share_is_noticed(kind: str, about: int, liar: int) -> None:
    server, clients, letters = begun(range(6))
    for one in range(5):
        server.add(clients[one].mask(letters[one], terms(6)[one]))
    answers = []
    for one in range(4):
        answer = clients[one].answer(server.survivors())
        shares = dict(getattr(answer, kind))
        if one == liar:
            shares[about] = bytes([*shares[about][:-1], shares[about][-1] ^ 1])
        answers.append(answer._replace(**{kind: shares}))
    with pytest.raises(AggregationError, match=rf"client {about} .*\[0, 1, 2, 3\]"):
        server.finish(answers)


def test_costs_are_the_bytes_of_the_messages() -> None:
    K, lost, n, seen = 6, 1, 100, []
    summed = secure_sum(range(K), terms(K, n), Losses(words=frozenset({4})), watch=seen.append)
    assert summed.costs.up == sum(map(num_bytes, seen))
    advertisement, letter = 4 + 3 * 32, 4 + 2 * 33 + 16
    words, answer = 4 + 8 * n, 4 + K * (4 + 33)
    assert summed.costs.up == K * (advertisement + 4 + (K - 1) * letter) + (K - lost) * (words + answer)
    down = K * K * advertisement + (K - lost) * (K - 1) * letter + (K - lost) * (K - lost) * 4
    assert summed.costs.down == down
    assert summed.costs.client_seconds > 0 < summed.costs.server_seconds
    assert summed.costs.plus(summed.costs).up == 2 * summed.costs.up


def test_clients_go_on_with_enough_others_and_answer_once_about_one_secret_of_each() -> None:
    server, clients, letters = begun(range(6))
    changed = bytearray(letters[2][0])
    changed[20] ^= 8
    with pytest.raises(AggregationError, match="from client 0 to 2"):
        clients[2].mask({**letters[2], 0: bytes(changed)}, terms(6)[2])
    with pytest.raises(AggregationError, match=r"client 0 .* only 2 clients"):
        clients[0].mask({1: letters[0][1]}, terms(6)[0])
    for one in range(1, 6):
        server.add(clients[one].mask(letters[one], terms(6)[one]))
    with pytest.raises(AggregationError, match=r"only 3 clients .* 4 are needed"):
        clients[1].answer([1, 2, 3])
    answer = clients[1].answer([1, 2, 3, 4])
    assert (set(answer.own), set(answer.lost)) == ({1, 2, 3, 4}, {0, 5})
    for client, survivors in ((1, [1, 2, 3, 4]), (1, [2, 3, 4, 5]), (2, [1, 2, 3, 9]), (2, [1, 2, 3, 3])):
        with pytest.raises(AggregationError, match=f"client {client} answers once"):
            clients[client].answer(survivors)


def test_words_and_keys_that_were_not_asked_for_are_refused() -> None:
    server, clients, letters = begun(range(3))
    server.add(clients[0].mask(letters[0], terms(3)[0]))
    for masked in (Masked(0, terms(3)[0]), Masked(8, terms(3)[0]), Masked(1, np.zeros(4, np.uint64))):
        with pytest.raises(AggregationError, match=f"client {masked.client}"):
            server.add(masked)
    roster = [client.advertise() for client in clients.values()]
    with pytest.raises(AggregationError, match="twice"):
        Server(3).roster([*roster, roster[0]])
    with pytest.raises(AggregationError, match="client 9"):
        Client(9, 2).share(roster)
