"""Checkpoints at round ends: written beside their place, then moved into it, so that half a file never counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.federation.state import FederationState
from fedcmp.hashing import sha256_of
from fedcmp.types import Params

HASH = 16
"""Hexadecimal digits of a checkpoint's hash that stand in its name."""


def save_checkpoint(folder: Path, state: FederationState, keep: int = 2) -> Path:
    """Writes ``round-NNNN-<hash>.pt`` and removes all but the newest ``keep``.

    The hash is the beginning of the file's SHA-256, so that the name alone tells whether the content is what was
    written. The file is on the disk before it gets its name, and older ones go only then.

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
    for twin in folder.glob(f"{partial.stem}-*.pt"):
        if twin != path:
            twin.unlink()  # of the same round, before the run went back to an earlier one
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest round first, by number: names alone would put round 10000 before 9999."""
    found = [path for path in folder.glob("round-*-*.pt") if path.stem.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: (int(path.stem.split("-")[1]), path.name))


def load_checkpoint(path: Path) -> FederationState:
    """Reads a checkpoint onto the CPU; tensors and plain containers only, no code.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint of fedcmp.
    """
    try:
        digest = sha256_of(path)
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise ValueError(f"its content has the hash {digest[:HASH]}, not that of its name")
        # where the run goes on there may be no GPU, or another one
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return FederationState(**content)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of fedcmp: {error}") from error


def save_projector(path: Path, params: Params) -> None:
    """The projector alone, float32, under the names of the run folder's interface."""
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: value.detach().cpu().float().contiguous() for name, value in params.items()}, partial)
        os.replace(partial, path)
    except Exception as error:  # safetensors raises its own error class for a full disk
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def load_projector(path: Path) -> Params:
    """Reads what ``save_projector`` wrote.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        params: Params = load_file(path)
    except Exception as error:
        raise CheckpointError(f"cannot read the projector {path}: {error}") from error
    return params
