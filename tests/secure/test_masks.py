"""The generator against the block cipher itself, and what masks look like."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fedcmp.secure.keys import commit, key_pair, mask_key, seal, unseal
from fedcmp.secure.masks import CHUNK, WORD_BYTES, add_mask

KEY = bytes(range(32))


@pytest.mark.parametrize("count", [0, 1, 2, 5, CHUNK // WORD_BYTES, CHUNK // WORD_BYTES + 3])
def test_a_mask_is_the_cipher_of_a_counter(count: int) -> None:
    blocks = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    stream = b"".join(blocks.update(number.to_bytes(16, "big")) for number in range(count // 2 + 1))
    expected = np.frombuffer(stream[: WORD_BYTES * count], "<u8")
    words = np.zeros(count, np.uint64)
    add_mask(words, KEY)
    assert np.array_equal(words, expected)
    add_mask(words, KEY, -1)
    assert not words.any()


def test_masked_bytes_are_uniform_and_unlike_those_of_another_key() -> None:
    words, other = np.zeros(50_000, np.uint64), np.zeros(50_000, np.uint64)
    add_mask(words, KEY)
    add_mask(other, KEY[::-1])
    for found in (words, other, words - other):  # differences wrap around, too
        counts = np.bincount(found.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_letters_are_read_by_their_receiver_only() -> None:
    one, two, three = (key_pair(bytes([seed] * 32)) for seed in (1, 2, 3))
    sealed = seal(b"shares", one.private, two.public, 1, 2)
    assert unseal(sealed, two.private, one.public, 1, 2) == b"shares"
    assert unseal(sealed, three.private, one.public, 1, 2) is None
    assert unseal(sealed, two.private, three.public, 1, 2) is None, "it is not from somebody else"
    assert unseal(sealed, two.private, one.public, 2, 1) is None, "nor one's own, sent back"
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert unseal(bytes(changed), two.private, one.public, 1, 2) is None


def test_each_pair_and_each_commitment_is_its_own() -> None:
    pairs = [key_pair(bytes([seed] * 32)) for seed in (1, 2, 3)]
    keys = {mask_key(a.private, b.public, i, j) for i, a in enumerate(pairs) for j, b in enumerate(pairs) if i != j}
    assert len(keys) == 3
    assert len({commit(pair.private) for pair in pairs}) == 3
