"""Folders that appear whole or not at all, and files that colleagues can read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcmp.errors import RunFolderError

if TYPE_CHECKING:
    import torch


@contextmanager
def staged(out: Path, option: str = "--out") -> Iterator[Path]:
    """A folder to write into, beside ``out``; it becomes ``out`` when the block ends, and vanishes when it fails.

    Args:
        out: the folder.
        option: of the command, with which the user named it.

    Raises:
        RunFolderError: ``out`` is a file, is not empty, or cannot be made.
    """
    target = out.resolve()
    if target.exists() and not target.is_dir():
        raise RunFolderError(f"{option} {out} is a file; expected a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()):
        raise RunFolderError(f"{option} {out} exists and is not empty; choose another folder, or remove it")
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise RunFolderError(f"cannot make the folder {option} {out}: {error}") from error
    try:
        yield partial
        try:
            os.replace(partial, target)
        except OSError as error:
            raise RunFolderError(f"cannot make the folder {option} {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``; it becomes ``path`` when the block ends, and vanishes when it fails.

    Raises:
        RunFolderError: it cannot be written (full disk, no permission).
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except Exception as error:  # torch and safetensors raise classes of their own for a full disk
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises RunFolderError, which names ``path``, if the block cannot write it (full disk, no permission)."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Adds an object to a file of JSON lines, to the disk: it survives a power cut.

    Raises:
        RunFolderError: it cannot be written.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes safetensors with the mode that the umask gives; the library's own files are for their owner alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def check_space(folder: Path, num_bytes: int) -> None:
    """Whether a disk has room.

    Raises:
        RunFolderError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RunFolderError(
            f"the export needs {num_bytes / 2**20:,.0f} MiB, but only {free / 2**20:,.0f} are free in {folder.parent}"
        )
