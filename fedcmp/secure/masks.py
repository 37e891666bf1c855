"""Masks: a key of 32 bytes, stretched to as many words of 64 bits as are needed.

The generator is AES-256 in counter mode, of the library ``cryptography``: the key stream itself, read as little-endian
words. A key is used for one stream, so the counter may begin at 0. Where the processor knows AES this costs about as
much as reading memory does.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""Integers modulo 2^64, ``[n]``."""
WORD_BYTES = 8
CHUNK = 2**17
"""Bytes of the stream at a time, so that they stay in the processor's cache."""


def add_mask(words: Words, key: bytes, sign: int = 1) -> None:
    """``words += sign * stream(key)`` modulo 2^64, in place.

    >>> words = np.arange(3, dtype=np.uint64)
    >>> add_mask(words, bytes(32))
    >>> add_mask(words, bytes(32), -1)
    >>> words.tolist()
    [0, 1, 2]
    """
    assert sign in (1, -1), "a mask is added or taken away"
    encrypt = Cipher(AES(key), CTR(bytes(16))).encryptor()
    zeros, stream = bytes(CHUNK), bytearray(CHUNK + 15)  # the library asks for room of one block less one byte
    mask = np.frombuffer(stream, "<u8", CHUNK // WORD_BYTES)
    for begin in range(0, len(words), len(mask)):
        part = words[begin : begin + len(mask)]
        encrypt.update_into(zeros, stream)
        if sign > 0:
            part += mask[: len(part)]
        else:
            part -= mask[: len(part)]
