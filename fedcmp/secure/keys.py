"""Keys that two clients share, and letters between them that the server passes on and cannot read.

X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869) for keys, ChaCha20-Poly1305 (RFC 8439) for letters, all of the library
``cryptography``.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_ONCE = bytes(12)
"""The nonce: each letter has a key of its own, used for it alone."""


class KeyPair(NamedTuple):
    """An X25519 key pair."""

    private: bytes
    public: bytes


def key_pair(private: bytes) -> KeyPair:
    """The pair of 32 secret bytes."""
    return KeyPair(private, X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def mask_key(private: bytes, public: bytes, one: int, other: int) -> bytes:
    """The key of the mask of two clients, the same for both.

    Args:
        private: of the one; public: of the other.
        one, other: their ids, in any order.

    >>> mine, yours = key_pair(bytes([1] * 32)), key_pair(bytes([2] * 32))
    >>> mask_key(mine.private, yours.public, 3, 5) == mask_key(yours.private, mine.public, 5, 3)
    True
    """
    low, high = sorted((one, other))
    return _derive(private, public, f"fedcmp secure sum: mask of {low} and {high}")


def seal(letter: bytes, private: bytes, public: bytes, sender: int, receiver: int) -> bytes:
    """A letter that only ``receiver`` can read; 16 bytes longer. One letter each way between two clients."""
    return ChaCha20Poly1305(_letter_key(private, public, sender, receiver)).encrypt(_ONCE, letter, None)


def unseal(sealed: bytes, private: bytes, public: bytes, sender: int, receiver: int) -> bytes | None:
    """The letter, or None: it was changed on its way, or it is from or for another client."""
    try:
        return ChaCha20Poly1305(_letter_key(private, public, sender, receiver)).decrypt(_ONCE, sealed, None)
    except InvalidTag:
        return None


def commit(secret: bytes) -> bytes:
    """What shows later that a secret of 32 random bytes is the one that was meant, and says nothing about it before."""
    return hashlib.sha256(b"fedcmp secure sum: commitment" + secret).digest()


def _letter_key(private: bytes, public: bytes, sender: int, receiver: int) -> bytes:
    return _derive(private, public, f"fedcmp secure sum: letter from {sender} to {receiver}")


def _derive(private: bytes, public: bytes, purpose: str) -> bytes:
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY_BYTES, None, purpose.encode()).derive(shared)
