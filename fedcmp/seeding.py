"""Random streams. Each purpose derives its own seed from the run's; nothing seeds a global generator in mid-run."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one stream, for example ``derive(seed, "batches", round, client)``.

    >>> derive(0, "cohort", 3) == derive(0, "cohort", 3)
    True
    >>> derive(0, "cohort", 3) == derive(0, "cohort", 4)
    False
    """
    text = "/".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the stream ``path`` of the run seed."""
    return np.random.Generator(np.random.PCG64(derive(seed, *path)))  # what default_rng makes, without its questions


def torch_rng(seed: int, *path: str | int) -> torch.Generator:
    """A CPU torch generator for the stream ``path`` of the run seed."""
    return torch.Generator().manual_seed(derive(seed, *path))
