"""What towers and LLMs share while they load: no output, frozen, hashed, and no weight that the files lack.

transformers draws missing weights at random and only warns; here a missing weight that is used is an error.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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


def num_bytes(module: nn.Module) -> int:
    """Bytes of all weights and buffers, also on the meta device."""
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no reports while weights load: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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


def load_whole(loader: Any, path: str, **options: Any) -> tuple[Any, set[str]]:
    """A model of transformers, and the names of weights that its files lack or have in another shape.

    Absent parameters are zero, so that hashes of the weights do not change. A head that is tied to the embedding is
    not absent.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = loader.from_pretrained(path, **options)
    absent = {*map(str, found["missing_keys"]), *(str(name) for name, *_ in found["mismatched_keys"])}
    with torch.no_grad():
        for name, value in model.named_parameters(remove_duplicate=False):
            if name in absent:
                value.zero_()
    return model, absent


def refuse(key: str, name: str, absent: Iterable[str]) -> None:
    """Raises ConfigError with key, model and the first weights if any is absent."""
    if lacking := sorted(absent)[:4]:
        raise ConfigError(f"{key}: {name} lacks {', '.join(lacking)}, or has them in another shape")
