"""Masks against the block cipher itself, sealed letters, and secret shares against brute force over a small field."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import sympy
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedcmp.secure import crypto
from fedcmp.secure.crypto import CHUNK, PRIME, SECRET_BYTES, WORD_BYTES, add_mask, join, key_pair, seal, split, unseal

KEY = bytes(range(32))
SMALL = 11


@pytest.mark.parametrize("count", [0, 5, CHUNK // WORD_BYTES + 3])
def test_a_mask_is_the_cipher_of_a_counter(count: int) -> None:
    blocks = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    stream = b"".join(blocks.update(number.to_bytes(16, "big")) for number in range(count // 2 + 1))
    words = np.zeros(count, np.uint64)
    add_mask(words, KEY)
    assert np.array_equal(words, np.frombuffer(stream[: WORD_BYTES * count], "<u8"))
    add_mask(words, KEY, -1)
    assert not words.any()


def test_letters_are_read_by_their_receiver_only() -> None:
    one, two, three = (key_pair(bytes([seed] * 32)) for seed in (1, 2, 3))
    sealed = seal(b"shares", one.private, two.public, 1, 2)
    assert unseal(sealed, two.private, one.public, 1, 2) == b"shares"
    for private, public, sender, receiver in (
        (three.private, one.public, 1, 2), (two.private, three.public, 1, 2), (two.private, one.public, 2, 1),
    ):  # fmt: skip
        assert unseal(sealed, private, public, sender, receiver) is None
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert unseal(bytes(changed), two.private, one.public, 1, 2) is None


def through(points: dict[int, int], degree: int) -> list[tuple[int, ...]]:
    """All polynomials over the small field, of at most this degree, that go through the points."""
    return [
        one
        for one in itertools.product(range(SMALL), repeat=degree + 1)
        if all(sum(c * x**i for i, c in enumerate(one)) % SMALL == y for x, y in points.items())
    ]


@pytest.fixture
def small_field(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crypto, "PRIME", SMALL)
    crypto._weights.cache_clear()
    yield
    crypto._weights.cache_clear()


@pytest.mark.usefixtures("small_field")
@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_t_shares_give_the_secret_and_fewer_say_nothing(threshold: int) -> None:
    for secret in range(SMALL):
        shares = split(secret.to_bytes(SECRET_BYTES, "big"), threshold, [1, 2, 4, 7], random.Random(secret).randbytes)
        values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
        for chosen in itertools.combinations(values, threshold):
            assert join({point: shares[point] for point in chosen}) == secret.to_bytes(SECRET_BYTES, "big")
        for chosen in itertools.combinations(values, threshold - 1):
            possible = through({point: values[point] for point in chosen}, threshold - 1)
            assert Counter(one[0] for one in possible) == dict.fromkeys(range(SMALL), 1), "each secret is as likely"


def test_any_t_of_n_no_fewer_and_no_wrong_share() -> None:
    assert sympy.isprime(PRIME)
    for secret in (bytes(32), b"\xff" * 32, KEY):
        shares = split(secret, 4, range(1, 7))
        for count in range(1, 7):
            for chosen in itertools.combinations(shares, count):
                assert (join({point: shares[point] for point in chosen}) == secret) == (count >= 4)
        for point, place in itertools.product(shares, (0, 15, 32)):
            wrong = bytearray(shares[point])
            wrong[place] ^= 1
            assert join({**shares, point: bytes(wrong)}) != secret
        assert split(secret, 4, range(1, 7)) != shares, "polynomials are drawn anew"
