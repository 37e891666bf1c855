"""The state of a run and its files: checkpoints at round ends, and the projector."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedcmp.errors import CheckpointError
from fedcmp.federation.client import LocalStates
from fedcmp.hashing import sha256_of
from fedcmp.staging import save_tensors, whole_file
from fedcmp.types import Params

HASH = 16
"""Hexadecimal digits of a checkpoint's hash that its name has."""
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
    """Hash of the parameters (name, shape, bytes as little-endian float32, sorted by name), not of any file."""
    digest = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def save_checkpoint(folder: Path, state: FederationState) -> Path:
    """Writes ``round-NNNN-<hash>.pt``, with the beginning of the file's SHA-256.

    Older ones stay until ``prune_checkpoints``: only the round's record, which is written next, makes this one usable.

    Raises:
        RunFolderError: the folder cannot be written (full disk, no permission).
    """
    written = folder / f"round-{state.rounds_done:04d}.pt"  # its hash is known when it is there
    with whole_file(written) as partial:
        torch.save(state.to_dict(), partial)
    return written.rename(folder / f"{written.stem}-{sha256_of(written)[:HASH]}.pt")


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Removes all checkpoints but ``newest``, whose round is recorded now, and the ``keep`` - 1 before it (keep >= 1).

    Others of its round, and those of later ones, are of a history that the run left when it went back.
    """
    found = list_checkpoints(newest.parent)
    before = [path for path in found if round_of(path) < round_of(newest)]
    for path in {*found} - {newest, *before[len(before) - keep + 1 :]}:
        path.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest round first, by number: names alone would put round 10000 before 9999."""
    found = [path for path in folder.glob("round-*-*.pt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (round_of(path), path))


def round_of(path: Path) -> int:
    """The round of a checkpoint, by its name."""
    return int(path.name.split("-")[1])


def load_checkpoint(path: Path) -> FederationState:
    """Reads a checkpoint onto the CPU, as the run may go on elsewhere; tensors and plain containers only, no code.

    Raises:
        CheckpointError: missing, corrupted, or not a checkpoint of fedcmp.
    """
    try:
        digest, match = sha256_of(path), NAME.fullmatch(path.name)
        if match is None or not digest.startswith(match[2]):
            raise ValueError(f"its content has the hash {digest[:HASH]}, not that of its name")
        state = FederationState(**torch.load(path, map_location="cpu", weights_only=True))
        if type(state.rounds_done) is not int or state.rounds_done != int(match[1]) or not _is_state(state):
            raise ValueError("it is no state after the round of its name")
        return state
    except Exception as error:
        raise CheckpointError(f"{path} is missing, corrupted or not a checkpoint of fedcmp: {error}") from error


def _is_state(state: FederationState) -> bool:
    """A file may be whole, and something else."""
    params = isinstance(state.params, dict) and all(isinstance(value, torch.Tensor) for value in state.params.values())
    numbers = type(state.samples_seen) is int and isinstance(state.best_loss, float) and not math.isnan(state.best_loss)
    return params and numbers and isinstance(state.aggregator, dict) and isinstance(state.local, dict)


def save_projector(path: Path, params: Params) -> None:
    """The projector alone, float32, under the names of the run folder's interface."""
    with whole_file(path) as partial:
        save_tensors({name: value.detach().cpu().float().contiguous() for name, value in params.items()}, partial)


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
