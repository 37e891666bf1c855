"""Keys that two clients share, letters that the server cannot read, masks, and shares of secrets.

* Keys and letters: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439).
* Masks: a key of 32 bytes, stretched by AES-256 in counter mode to words of 64 bits, little-endian. A key is used for
  one stream, so the counter may begin at 0. On a processor with AES this costs about as much as reading memory.
* Shamir's secret sharing: any t of n shares give the secret, any t - 1 say nothing about it. The secret is the value at
  0 of a random polynomial of degree t - 1 over a prime field, a share its value at the receiver's own point x = 1, 2,
  ... (Shamir, "How to share a secret", Communications of the ACM 22, 1979).

Ciphers are those of the library ``cryptography``.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
_ONCE = bytes(12)
"""The nonce: each letter has a key of its own, used for it alone."""
Words = NDArray[np.uint64]
"""Integers modulo 2^64, ``[n]``."""
WORD_BYTES = 8
CHUNK = 2**17
"""Bytes of the stream at a time, so that they stay in the processor's cache."""
PRIME = 2**256 + 297
"""The smallest prime above 2^256: every secret of 32 bytes is an element of its field."""
SECRET_BYTES, SHARE_BYTES = 32, 33

Entropy = Callable[[int], bytes]
"""So many random bytes; ``os.urandom`` but in tests."""


class KeyPair(NamedTuple):
    """An X25519 key pair, 32 bytes each."""

    private: bytes
    public: bytes


def key_pair(private: bytes) -> KeyPair:
    """The pair of 32 secret bytes."""
    return KeyPair(private, X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def mask_key(private: bytes, public: bytes, one: int, other: int) -> bytes:
    """The key of the mask of clients ``one`` and ``other``, the same for both: from the private key of either and the
    public key of the other.

    >>> mine, yours = key_pair(bytes([1] * 32)), key_pair(bytes([2] * 32))
    >>> mask_key(mine.private, yours.public, 3, 5) == mask_key(yours.private, mine.public, 5, 3)
    True
    """
    low, high = sorted((one, other))
    return _derive(private, public, f"fedcmp secure sum: mask of {low} and {high}")


def seal(letter: bytes, private: bytes, public: bytes, sender: int, receiver: int) -> bytes:
    """A letter that only ``receiver`` can read; 16 bytes longer. One letter each way between two clients."""
    key = _derive(private, public, f"fedcmp secure sum: letter from {sender} to {receiver}")
    return ChaCha20Poly1305(key).encrypt(_ONCE, letter, None)


def unseal(sealed: bytes, private: bytes, public: bytes, sender: int, receiver: int) -> bytes | None:
    """The letter, or None: it was changed on its way, or it is from or for another client."""
    key = _derive(private, public, f"fedcmp secure sum: letter from {sender} to {receiver}")
    try:
        return ChaCha20Poly1305(key).decrypt(_ONCE, sealed, None)
    except InvalidTag:
        return None


def commit(secret: bytes) -> bytes:
    """The commitment to a secret of 32 random bytes: it says nothing about the secret, and fits no other."""
    return hashlib.sha256(b"fedcmp secure sum: commitment" + secret).digest()


def _derive(private: bytes, public: bytes, purpose: str) -> bytes:
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY_BYTES, None, purpose.encode()).derive(shared)


def add_mask(words: Words, key: bytes, sign: int = 1) -> None:
    """``words += sign * stream(key)`` modulo 2^64, in place.

    >>> words = np.arange(3, dtype=np.uint64)
    >>> add_mask(words, bytes(32))
    >>> add_mask(words, bytes(32), -1)
    >>> words.tolist()
    [0, 1, 2]
    """
    assert sign in (1, -1)
    encrypt = Cipher(AES(key), CTR(bytes(16))).encryptor()
    zeros, stream = bytes(CHUNK), bytearray(CHUNK + 15)  # the library asks for room of one block less one byte
    mask = np.frombuffer(stream, "<u8", CHUNK // WORD_BYTES)
    for begin in range(0, len(words), len(mask)):
        part = words[begin : begin + len(mask)]
        encrypt.update_into(zeros, stream)
        (np.add if sign > 0 else np.subtract)(part, mask[: len(part)], out=part)


def split(secret: bytes, threshold: int, points: Sequence[int], entropy: Entropy = os.urandom) -> dict[int, bytes]:
    """One share, 33 bytes, for each point.

    Args:
        secret: 32 bytes.
        threshold: t, 1 .. n: the number of shares that give the secret.
        points: n different numbers, each at least 1 and below the prime.
        entropy: where the polynomial comes from.

    >>> shares = split(bytes(range(32)), 2, [1, 2, 3])
    >>> join({3: shares[3], 1: shares[1]}) == bytes(range(32))
    True
    """
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= len(points) == len(set(points))
    assert all(0 < point < PRIME for point in points)
    # 48 bytes: uniform over the field, up to a bias of 2^-127
    drawn = [int.from_bytes(entropy(48), "big") % PRIME for _ in range(threshold - 1)]
    polynomial = [int.from_bytes(secret, "big"), *drawn]
    return {point: _value(polynomial, point).to_bytes(SHARE_BYTES, "big") for point in points}


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret, 32 bytes, from t shares or more by their points, if they are all of one secret.

    With fewer shares, or where one is wrong, what comes out is another value: the caller must check it. None: the
    value is no secret of 32 bytes, so that a share must be wrong.
    """
    weights = _weights(tuple(shares))
    total = sum(weight * int.from_bytes(share, "big") for weight, share in zip(weights, shares.values(), strict=True))
    total %= PRIME
    return total.to_bytes(SECRET_BYTES, "big") if total < 2 ** (8 * SECRET_BYTES) else None


@lru_cache(maxsize=16)
def _weights(points: tuple[int, ...]) -> list[int]:
    """Lagrange's weights of the values at ``points`` in the value at 0; a server asks for the same ones K times."""
    weights = []
    for point in points:
        others = [other for other in points if other != point]
        under = math.prod(other - point for other in others)
        weights.append(math.prod(others) * pow(under, -1, PRIME) % PRIME)
    return weights


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):  # Horner's rule
        value = (value * point + coefficient) % PRIME
    return value
