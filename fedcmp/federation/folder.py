"""A run folder: an interface, claimed before the work begins; nothing of a run is written outside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from fedcmp.errors import RunFolderError
from fedcmp.locking import LOCK
from fedcmp.staging import whole_file

TEST_LOSSES = "test_losses.json"
"""In a run folder, or that of a client alone: losses of each test sample."""
LEAST_FREE = 64 * 2**20
"""Bytes that must be free before a run starts."""


class RunFolder:
    """The places inside a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.split = path / "split.json"
        self.sites = path / "sites.json"  # of a run over sites alone
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
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Writes an object, readable by people."""
        self.write_text(path, json.dumps(content, indent=2) + "\n")


def check_unused(folder: Path) -> None:
    """Raises RunFolderError if there are files that no new run may mix with."""
    if folder.is_dir() and any(one.name != LOCK for one in folder.iterdir()):
        go_on = f", or go on with it: fedcmp train --resume {folder}" if (folder / "config.yaml").is_file() else ""
        raise RunFolderError(f"the run folder {folder} is not empty; choose another run.dir or run.name{go_on}")


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
        for tried in count(1) if path is None and number else ():
            folder = Path("runs") / f"{name}-{tried}"
            try:
                folder.mkdir(parents=True)  # fails where another process was faster
                break
            except FileExistsError:
                continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunFolderError(f"cannot make the run folder {folder}: {error}; set run.dir") from error
    check_unused(folder)
    if free < LEAST_FREE:
        room = f"{free / 2**20:.0f} MiB are free for the run folder {folder}"
        raise RunFolderError(f"only {room}; at least {LEAST_FREE // 2**20} are needed")
    return RunFolder(folder)
