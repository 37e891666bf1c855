"""A run folder: an interface, claimed before the work begins; nothing of a run is written outside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcmp.errors import RunFolderError
from fedcmp.locking import LOCK

LEAST_FREE = 64 * 2**20
"""Bytes that must be free before a run starts."""


class RunFolder:
    """The places inside a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.split = path / "split.json"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.projector = path / "projector.safetensors"
        self.checkpoints = path / "checkpoints"
        self.captions = path / "captions.png"
        self.captions_list = path / "captions.jsonl"
        self.pictures = path / "pictures"
        self.figures = path / "figures"

    def write_text(self, path: Path, text: str) -> None:
        """Writes a small file whole or not at all, also where the power fails.

        Raises:
            RunFolderError: it cannot be written.
        """
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Writes an object, readable by people."""
        self.write_text(path, json.dumps(content, indent=2) + "\n")


def claim(path: Path | None, name: str, number: bool) -> RunFolder:
    """Makes the folder of a new run.

    Args:
        path: the folder that the user named (``run.dir``); None: ``runs/<name>``.
        name: the run's name.
        number: append the first free number to ``name``, so that a run can be repeated.

    Raises:
        RunFolderError: it has files already, cannot be made, or its disk is full.
    """
    folder = path or Path("runs") / name
    try:
        if path is None and number:
            folder = _numbered(Path("runs"), name)
        folder.mkdir(parents=True, exist_ok=True)
        if any(one.name != LOCK for one in folder.iterdir()):
            raise RunFolderError(f"the run folder {folder} is not empty; choose another run.dir or run.name")
        return RunFolder(_writable(folder))
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"cannot make the run folder {folder}: {error}; set run.dir") from error


def _numbered(parent: Path, name: str) -> Path:
    """Makes the first free one of ``<name>-1``, ``<name>-2``, ..., also beside other processes."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / f"{name}-{number}").mkdir()
            return parent / f"{name}-{number}"
        except FileExistsError:
            number += 1


def _writable(folder: Path) -> Path:
    probe = folder / ".probe"
    probe.write_text("")
    probe.unlink()
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise RunFolderError(
            f"only {free / 2**20:.0f} MiB are free for the run folder {folder}; at least 64 are needed"
        )
    return folder
