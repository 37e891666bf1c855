"""Where a run computes."""

from __future__ import annotations

import torch

from fedcmp.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device.

    Raises:
        ConfigError: CUDA is wanted and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
