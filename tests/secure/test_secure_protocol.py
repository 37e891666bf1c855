"""The protocol from end to end: sums, losses, and wrong messages that are noticed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fedcmp.errors import AggregationError
from fedcmp.secure.parties import Client, Masked, Server, num_bytes, threshold
from fedcmp.secure.protocol import Losses, secure_sum


def terms(count: int, size: int = 5) -> list[np.ndarray]:
    return list(np.random.default_rng(count).integers(0, 2**64, (count, size), np.uint64))


def plain(parts: Sequence[np.ndarray]) -> list[int]:
    return [sum(map(int, column)) % 2**64 for column in zip(*parts, strict=True)]


def begun(ids: Sequence[int]) -> tuple[Server, dict[int, Client], dict[int, dict[int, bytes]]]:
    """A sum after its letters were delivered."""
    server, clients = Server(len(ids)), {one: Client(one, threshold(len(ids))) for one in ids}
    roster = server.roster([client.advertise() for client in clients.values()])
    return server, clients, server.deliver([client.share(roster) for client in clients.values()])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_sum_is_the_sum_and_a_third_but_no_more_may_be_lost_at_every_step(count: int) -> None:
    ids, parts = [7 * place + 2 for place in range(count)], terms(count)
    summed = secure_sum(ids, parts)
    assert (summed.total.tolist(), summed.survivors) == (plain(parts), tuple(ids))
    assert all(np.array_equal(part, old) for part, old in zip(parts, terms(count), strict=True)), "terms are untouched"
    few, many = frozenset(ids[: count // 3]), frozenset(ids[: count // 3 + 1])
    for step in Losses._fields:
        secure_sum(ids, parts, Losses(**{step: few}))
        with pytest.raises(AggregationError, match=f"only {count - len(many)} of {count} "):
            secure_sum(ids, parts, Losses(**{step: many}))
    with pytest.raises(AggregationError, match="at least 2 clients"):
        secure_sum([4], terms(1))


@pytest.mark.parametrize("steps", list(itertools.combinations_with_replacement(Losses._fields, 2)), ids=str)
def test_clients_may_be_lost_at_different_steps(steps: tuple[str, str]) -> None:
    ids, parts = [3, 5, 6, 8, 11, 20], terms(6)
    for pair in itertools.permutations(ids, 2):
        losses = Losses()
        for step, client in zip(steps, pair, strict=True):
            losses = losses._replace(**{step: getattr(losses, step) | {client}})
        summed = secure_sum(ids, parts, losses)
        left = [one for one in ids if one not in losses.shares | losses.words]
        assert summed.survivors == tuple(left)
        assert summed.total.tolist() == plain([parts[ids.index(one)] for one in left])


@pytest.mark.parametrize(("kind", "about"), [("own", 2), ("lost", 5)])
def test_a_wrong_share_is_noticed(kind: str, about: int) -> None:
    server, clients, letters = begun(range(6))
    for one in range(5):
        server.add(clients[one].mask(letters[one], terms(6)[one]))
    answers = [clients[one].answer(server.survivors()) for one in range(4)]
    shares = dict(getattr(answers[3], kind))
    shares[about] = bytes([*shares[about][:-1], shares[about][-1] ^ 1])
    with pytest.raises(AggregationError, match=rf"client {about} .*\[0, 1, 2, 3\]"):
        server.finish([*answers[:3], answers[3]._replace(**{kind: shares})])


def test_costs_are_the_bytes_of_the_messages() -> None:
    K, lost, n, seen = 6, 1, 100, []
    summed = secure_sum(range(K), terms(K, n), Losses(words=frozenset({4})), watch=seen.append)
    assert summed.costs.up == sum(map(num_bytes, seen))
    advertisement, letter = 4 + 3 * 32, 4 + 2 * 33 + 16
    words, answer = 4 + 8 * n, 4 + K * (4 + 33)
    assert summed.costs.up == K * (advertisement + 4 + (K - 1) * letter) + (K - lost) * (words + answer)
    down = K * K * advertisement + (K - lost) * (K - 1) * letter + (K - lost) * (K - lost) * 4
    assert summed.costs.down == down


def refused(step: Callable[[], object], who: str) -> None:
    with pytest.raises(AggregationError, match=who):
        step()


def test_clients_go_on_with_enough_others_and_answer_once_about_one_secret_of_each() -> None:
    server, clients, letters = begun(range(6))
    changed = bytearray(letters[2][0])
    changed[20] ^= 8
    refused(lambda: clients[2].mask({**letters[2], 0: bytes(changed)}, terms(6)[2]), "from client 0 to 2")
    refused(lambda: clients[0].mask({1: letters[0][1]}, terms(6)[0]), "client 0 ")
    for one in range(1, 6):
        server.add(clients[one].mask(letters[one], terms(6)[one]))
    refused(lambda: clients[1].answer([1, 2, 3]), "client 1 ")
    answer = clients[1].answer([1, 2, 3, 4])
    assert (set(answer.own), set(answer.lost)) == ({1, 2, 3, 4}, {0, 5})
    for client, survivors in ((1, [1, 2, 3, 4]), (2, [1, 2, 3, 9]), (2, [1, 2, 3, 3])):
        refused(lambda client=client, survivors=survivors: clients[client].answer(survivors), f"client {client} ")


def test_words_and_keys_that_were_not_asked_for_are_refused() -> None:
    server, clients, letters = begun(range(3))
    server.add(clients[0].mask(letters[0], terms(3)[0]))
    for masked in (Masked(0, terms(3)[0]), Masked(8, terms(3)[0]), Masked(1, np.zeros(4, np.uint64))):
        refused(lambda masked=masked: server.add(masked), f"client {masked.client}")
    roster = [client.advertise() for client in clients.values()]
    refused(lambda: Server(3).roster([*roster, roster[0]]), "twice")
    refused(lambda: Client(0, 2).share([*roster, roster[0]]), "client 0")
