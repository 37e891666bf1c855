"""Secret shares against brute force over a small field, and over the field that is used."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import sympy

from fedcmp.secure import shamir
from fedcmp.secure.shamir import PRIME, SECRET_BYTES, join, split

SMALL = 11


def entropy(seed: int):
    return random.Random(seed).randbytes


def through(points: dict[int, int], degree: int) -> list[tuple[int, ...]]:
    """All polynomials over the small field, of at most this degree, that go through the points."""
    return [
        one
        for one in itertools.product(range(SMALL), repeat=degree + 1)
        if all(sum(c * x**i for i, c in enumerate(one)) % SMALL == y for x, y in points.items())
    ]


@pytest.fixture
def small_field(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shamir, "PRIME", SMALL)
    shamir._weights.cache_clear()
    yield
    shamir._weights.cache_clear()


@pytest.mark.usefixtures("small_field")
@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_t_shares_give_the_secret_and_fewer_say_nothing(threshold: int) -> None:
    for secret in range(SMALL):
        shares = split(secret.to_bytes(SECRET_BYTES, "big"), threshold, [1, 2, 4, 7], entropy(secret))
        values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
        for chosen in itertools.combinations(values, threshold):
            (only,) = through({point: values[point] for point in chosen}, threshold - 1)
            assert only[0] == secret
            assert join({point: shares[point] for point in chosen}) == secret.to_bytes(SECRET_BYTES, "big")
        for chosen in itertools.combinations(values, threshold - 1):
            possible = through({point: values[point] for point in chosen}, threshold - 1)
            assert Counter(one[0] for one in possible) == dict.fromkeys(range(SMALL), 1), "each secret is as likely"


def test_the_modulus_is_prime_and_holds_every_key() -> None:
    assert sympy.isprime(PRIME)
    assert PRIME > 2**256
    for secret in (bytes(32), b"\xff" * 32):
        assert join(split(secret, 3, [1, 2, 3, 4])) == secret


def test_any_t_of_n_no_fewer_and_no_wrong_one() -> None:
    secret = entropy(0)(32)
    shares = split(secret, 4, range(1, 7), entropy(1))
    assert all(len(share) == shamir.SHARE_BYTES for share in shares.values())
    for count in range(1, 7):
        for chosen in itertools.combinations(shares, count):
            assert (join({point: shares[point] for point in chosen}) == secret) == (count >= 4)
    for point, place in itertools.product(shares, (0, 15, 32)):
        wrong = bytearray(shares[point])
        wrong[place] ^= 1
        assert join({**shares, point: bytes(wrong)}) != secret
    assert split(secret, 4, range(1, 7)) != split(secret, 4, range(1, 7)), "polynomials are drawn anew"
