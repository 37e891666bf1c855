"""What towers and LLMs share while they load: quiet, frozen, hashed, and errors that name the user's key."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fedcmp.errors import ConfigError, FedcmpError


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode, no gradients; in place."""
    return model.eval().requires_grad_(False)


def hash_weights(model: nn.Module, *extra: object) -> str:
    """SHA-256 of names, shapes, types and bytes of all weights, and of ``extra``."""
    digest = hashlib.sha256(json.dumps([str(item) for item in extra]).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no reports while weights load: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which of two equal processors it picks, and the like
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(key: str, name: str) -> Iterator[None]:
    """Turns what transformers raises while a model loads into a ConfigError that names key and model."""
    try:
        with quiet_transformers():
            yield
    except FedcmpError:
        raise
    except (OSError, ImportError, ValueError, KeyError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{key}: {name} cannot be loaded: {lines[0] if lines else type(error).__name__}") from error
