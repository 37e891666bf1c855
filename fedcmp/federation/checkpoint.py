"""The state of a run and its files: checkpoints at round ends, and the projector.

A file is written beside its place, then moved into it, so that half a file never counts.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.federation.client import LocalStates
from fedcmp.hashing import sha256_of
from fedcmp.staging import save_tensors
from fedcmp.types import Params

HASH = 16
"""Hexadecimal digits of a checkpoint's hash that stand in its name."""
NAME = re.compile(rf"round-([0-9]+)-([0-9a-f]{{{HASH}}})\.pt")


@dataclass(frozen=True)
class FederationState:
    """The run after ``rounds_done`` rounds. Sample positions and cohorts are pure functions of the config and seed."""

    params: Params
    """The global projector, float32."""
    aggregator: dict[str, Any]
    """The aggregator's state: nested dicts of tensors and numbers."""
    rounds_done: int = 0
    samples_seen: int = 0
    best_loss: float = float("inf")
    local: LocalStates = field(default_factory=dict)
    """What clients keep: the local step's state of each, and its optimizer's where that is kept."""
    privacy: dict[str, Any] = field(default_factory=dict)
    """What privacy carries from round to round; empty without."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, as ``torch.load(weights_only=True)`` accepts them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def params_sha256(params: Params) -> str:
    """Hash of the parameters (name, shape, bytes as little-endian float32, sorted by name), not of any file.

    >>> import torch
    >>> one = {"b": torch.zeros(2), "a": torch.ones(1)}
    >>> params_sha256(one) == params_sha256({"a": torch.ones(1), "b": torch.zeros(2)})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def save_checkpoint(folder: Path, state: FederationState) -> Path:
    """Writes ``round-NNNN-<hash>.pt``.

    The hash is the beginning of the file's SHA-256, so that the name alone shows whether the content is what was
    written. The file is on the disk before it gets its name. Older ones stay until ``prune_checkpoints``: only the
    round's record, which is written next, makes this one usable.

    Raises:
        RunFolderError: the folder cannot be written (full disk, no permission).
    """
    partial = folder / f"round-{state.rounds_done:04d}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state.to_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{partial.stem}-{sha256_of(partial)[:HASH]}.pt"
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        partial.unlink(missing_ok=True)
        raise RunFolderError(
            f"cannot write the checkpoint {partial.with_suffix('.pt')}: {error}; is there disk space and permission?"
        ) from error
    return path


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Removes all checkpoints but ``newest``, whose round is recorded now, and the ``keep`` - 1 before it (keep >= 1).

    Others of its round, and those of later ones, are of a history that the run left when it went back.
    """
    found = list_checkpoints(newest.parent)
    before = [path for path in found if round_of(path) < round_of(newest)]
    kept = {newest, *before[len(before) - keep + 1 :]}
    for path in found:
        if path not in kept:
            path.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest round first, by number: names alone would put round 10000 before 9999."""
    found = [path for path in folder.glob("round-*-*.pt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (round_of(path), path))


def round_of(path: Path) -> int:
    """The round of a checkpoint, by its name."""
    match = NAME.fullmatch(path.name)
    assert match is not None, "a name that save_checkpoint gave"
    return int(match[1])


def load_checkpoint(path: Path) -> FederationState:
    """Reads a checkpoint onto the CPU; tensors and plain containers only, no code.

    Raises:
        CheckpointError: missing, corrupted, or not a checkpoint of fedcmp.
    """
    try:
        digest, match = sha256_of(path), NAME.fullmatch(path.name)
        if match is None or not digest.startswith(match[2]):
            raise ValueError(f"its content has the hash {digest[:HASH]}, not that of its name")
        # where the run goes on there may be no GPU, or another one
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = FederationState(**content)
        _check(state, int(match[1]))
        return state
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except Exception as error:
        raise CheckpointError(f"{path} is corrupted or not a checkpoint of fedcmp: {error}") from error


def _check(state: FederationState, rounds: int) -> None:
    """Whether a state is one: a file may be whole, and something else.

    Raises:
        ValueError: it is not.
    """
    params = isinstance(state.params, dict) and all(isinstance(value, torch.Tensor) for value in state.params.values())
    counts = all(type(count) is int and count >= 0 for count in (state.rounds_done, state.samples_seen))
    loss = isinstance(state.best_loss, float) and not math.isnan(state.best_loss)
    parts = isinstance(state.aggregator, dict) and isinstance(state.local, dict)
    if not (params and counts and loss and parts):
        raise ValueError("it is no state of a federation")
    if state.rounds_done != rounds:
        raise ValueError(f"it has the state after round {state.rounds_done}, not that of its name")


def save_projector(path: Path, params: Params) -> None:
    """The projector alone, float32, under the names of the run folder's interface."""
    partial = path.with_name(path.name + ".partial")
    try:
        save_tensors({name: value.detach().cpu().float().contiguous() for name, value in params.items()}, partial)
        os.replace(partial, path)
    except Exception as error:  # safetensors raises its own error class for a full disk
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def load_projector(path: Path) -> Params:
    """Reads what ``save_projector`` wrote.

    Raises:
        CheckpointError: missing or corrupted.
    """
    try:
        params: Params = load_file(path)
    except Exception as error:
        raise CheckpointError(f"cannot read the projector {path}: {error}") from error
    return params
