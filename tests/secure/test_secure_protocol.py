"""The protocol from end to end: sums, losses, and lies that are noticed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from fedcmp.errors import AggregationError
from fedcmp.secure import Answer, Client, Losses, Masked, Server, num_bytes, secure_sum, threshold

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


def test_signed_numbers_and_no_numbers() -> None:
    parts = [np.array([-3, 2**62], np.int64), np.array([1, -(2**62)], np.int64)]
    total = secure_sum([0, 1], [part.view(np.uint64) for part in parts]).total
    assert total.view(np.int64).tolist() == [-2, 0]
    assert secure_sum([0, 1], [np.zeros(0, np.uint64)] * 2).total.shape == (0,)


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


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 9, 12])
def test_one_more_than_a_third_is_refused_at_every_step(count: int) -> None:
    most = count // 3
    few, many = frozenset(range(most)), frozenset(range(most + 1))
    for step, what in (("shares", "shared their secrets"), ("words", "sent their words"), ("answer", "answered")):
        secure_sum(range(count), terms(count), Losses(**{step: few}))
        left = count - most - 1
        message = f"only {left} of {count} clients {what}, .* needs {count - most}: at most a third, {most}, may be"
        with pytest.raises(AggregationError, match=message):
            secure_sum(range(count), terms(count), Losses(**{step: many}))


def test_one_client_has_nobody_to_hide_among() -> None:
    with pytest.raises(AggregationError, match="at least 2 clients, got 1"):
        secure_sum([4], terms(1))


@pytest.mark.parametrize(("kind", "about"), [("own", 2), ("lost", 5)])
@pytest.mark.parametrize("liar", [0, 1, 3])
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
    with pytest.raises(AggregationError, match=rf"client {about} .*one of the clients \[0, 1, 2, 3\] sent a wrong"):
        server.finish(answers)


def test_a_letter_that_was_changed_is_noticed() -> None:
    _, clients, letters = begun(range(3))
    changed = bytearray(letters[2][0])
    changed[20] ^= 8
    with pytest.raises(AggregationError, match="from client 0 to 2 were changed on their way"):
        clients[2].mask({**letters[2], 0: bytes(changed)}, terms(3)[2])


def test_clients_do_not_go_on_with_few_and_answer_once() -> None:
    server, clients, letters = begun(range(6))
    with pytest.raises(AggregationError, match=r"client 0 does not go on .* only 2 clients shared"):
        clients[0].mask({1: letters[0][1]}, terms(6)[0])
    for one in range(1, 6):
        server.add(clients[one].mask(letters[one], terms(6)[one]))
    with pytest.raises(AggregationError, match="only 3 clients sent their words, and 4 are needed"):
        clients[1].answer([1, 2, 3])
    clients[1].answer([1, 2, 3, 4])
    for again in ([1, 2, 3, 4], [2, 3, 4, 5]):
        with pytest.raises(AggregationError, match="client 1 answers once"):
            clients[1].answer(again)
    for wrong in ([1, 2, 3, 9], [1, 2, 3, 3]):
        with pytest.raises(AggregationError, match="client 2 answers once, about clients that took part"):
            clients[2].answer(wrong)


def test_words_that_nobody_asked_for_are_refused() -> None:
    server, clients, letters = begun(range(3))
    server.add(clients[0].mask(letters[0], terms(3)[0]))
    for masked in (Masked(0, terms(3)[0]), Masked(8, terms(3)[0])):
        with pytest.raises(AggregationError, match=f"client {masked.client} sent words without being asked"):
            server.add(masked)
    with pytest.raises(AggregationError, match="client 1 sent 4 words, others 5"):
        server.add(Masked(1, np.zeros(4, np.uint64)))
    roster = [client.advertise() for client in clients.values()]
    with pytest.raises(AggregationError, match="advertised keys twice"):
        Server(3).roster([*roster, roster[0]])
    with pytest.raises(AggregationError, match="told of a client twice, or not of itself"):
        Client(9, 2).share(roster)


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


def test_no_answer_holds_both_secrets_of_a_client() -> None:
    seen: list = []
    secure_sum(range(6), terms(6), Losses(words=frozenset({1, 4})), watch=seen.append)
    answers = [one for one in seen if isinstance(one, Answer)]
    assert len(answers) == 4
    for one in answers:
        assert set(one.own) == {0, 2, 3, 5}
        assert set(one.lost) == {1, 4}
