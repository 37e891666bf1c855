"""All that clients and the server send each other in secure aggregation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedcmp.secure.masks import Words

NUMBER_BYTES = 4
"""Of an id, a count or an exponent."""


class Advertisement(NamedTuple):
    """Step 0, client to server; the server passes all of them on to every client."""

    client: int
    letters: bytes
    """X25519 public key under which letters are sealed."""
    masks: bytes
    """X25519 public key from which masks are agreed."""
    commitment: bytes
    """SHA-256 commitment to the key of the self mask. (Differs from the paper, which has none.)"""


class Shares(NamedTuple):
    """Step 1, client to server; each letter goes on to its receiver."""

    client: int
    sealed: Mapping[int, bytes]
    """By receiver, one share of the private mask key and one of the key of the self mask, sealed."""


class Masked(NamedTuple):
    """Step 2, client to server: ``x_u`` plus masks, modulo 2^64."""

    client: int
    words: Words


class Answer(NamedTuple):
    """Step 3, client to server, after it got the list of survivors.

    Of one client it holds a share of the one secret or of the other, never of both.
    """

    client: int
    own: Mapping[int, bytes]
    """By client that has sent its words, a share of the key of its self mask."""
    lost: Mapping[int, bytes]
    """By client that has not, a share of its private mask key."""


def num_bytes(message: Any) -> int:
    """The size of a message: its bytes and words, and four bytes for every id.

    >>> num_bytes(Shares(3, {1: b"x" * 82, 2: b"x" * 82})), num_bytes(Masked(3, np.zeros(5, np.uint64)))
    (176, 44)
    """
    if isinstance(message, np.ndarray):
        return int(message.nbytes)
    if isinstance(message, bytes):
        return len(message)
    if isinstance(message, int):
        return NUMBER_BYTES
    if isinstance(message, Mapping):
        return sum(num_bytes(key) + num_bytes(value) for key, value in message.items())
    assert isinstance(message, tuple), f"no message: {type(message).__name__}"
    return sum(map(num_bytes, message))
