"""Shamir's secret sharing: any t of n shares give the secret, any t - 1 say nothing about it.

The secret is the value at 0 of a random polynomial of degree t - 1 over a prime field, a share its value at the
receiver's own point x = 1, 2, ... (Shamir, "How to share a secret", Communications of the ACM 22, 1979).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297
"""The smallest prime above 2^256: every secret of 32 bytes is an element of its field."""
SECRET_BYTES, SHARE_BYTES = 32, 33

Entropy = Callable[[int], bytes]
"""So many random bytes; ``os.urandom`` but in tests."""


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
    assert len(secret) == SECRET_BYTES, "secrets are keys of 32 bytes"
    assert 1 <= threshold <= len(points) == len(set(points)), "t of n different points"
    assert all(0 < point < PRIME for point in points), "the value at 0 is the secret itself"
    polynomial = [int.from_bytes(secret, "big"), *(_element(entropy) for _ in range(threshold - 1))]
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
        over = under = 1
        for other in points:
            if other != point:
                over = over * other % PRIME
                under = under * (other - point) % PRIME
        weights.append(over * pow(under, -1, PRIME) % PRIME)
    return weights


def _element(entropy: Entropy) -> int:
    """Uniform over the field, up to a bias of 2^-127."""
    return int.from_bytes(entropy(48), "big") % PRIME


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):  # Horner's rule
        value = (value * point + coefficient) % PRIME
    return value
