"""One run of a comparison, in whatever process it is given: begun, gone on with, or found done."""

from __future__ import annotations

import json
import logging
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.errors import CheckpointError, ConfigError, DataError, FedcmpError
from fedcmp.federation.folder import RunFolder
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.parts import Kept
from fedcmp.runs.train import resume, train
from fedcmp.study.cells import Job, with_options
from fedcmp.study.ledger import failed, finished
from fedcmp.tracking.progress import Progress

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """How it went: a record for runs.jsonl, or why there is none."""

    record: dict[str, Any] | None
    stopped: bool = False
    """A signal asked the run to stop; it can go on."""
    ended: str | None = None
    """What makes further runs pointless, for example a full disk."""


class Executor:
    """Runs jobs one after another; what they share (models, features) is kept between them.

    Args:
        cells: the folder of the runs.
        group: the W&B group.
        features: the cache of runs that have none of their own.
        alone: no other process speaks; elsewhere a line for each run is all that is said.
    """

    def __init__(self, cells: Path, group: str, features: Path | None = None, alone: bool = False) -> None:
        self.cells, self.group, self.features = cells, group, features
        self.progress = Progress(least=60.0) if alone else Progress(enabled=False)
        self.kept = Kept()

    def __call__(self, job: Job) -> Answer:
        """Runs the job. What goes wrong inside the run is a result; what goes wrong with the disk is not."""
        folder = self.cells / job.id
        try:
            summary = _summary(folder)
            if summary.get("exit") not in ("finished", "budget"):
                summary = self._run(job, folder)
            if summary["exit"] == "stopped":
                return Answer(None, stopped=True)
            return Answer(finished(job, folder, summary))
        except OSError as error:  # RunFolderError is one
            return Answer(None, ended=f"{error}" if isinstance(error, FedcmpError) else f"{folder}: {error}")
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            return Answer(failed(job, text))

    def _run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Begins the run, or goes on with it where a checkpoint of it is left."""
        places = {"run.dir": str(folder), "run.name": job.id, "wandb.group": self.group}
        if self.features is not None and job.config.data.cache_dir is None:
            places["data.cache_dir"] = str(self.features)
        config = with_options(job.config, places)
        begun = RunFolder(folder)
        bound = {"centralized": train_centralized, "local": train_local}.get(job.cell.method)
        if bound is None and begun.config.is_file() and begun.split.is_file():
            try:
                return self._call(resume, folder)
            except (CheckpointError, ConfigError, DataError) as error:  # of data: they have moved since
                log.warning("%s begins again: what is left of it cannot be used (%s)", folder, error)
        if folder.exists():
            shutil.rmtree(folder)
        return self._call(bound or train, config)

    def _call(self, run: Callable[..., dict[str, Any]], what: Any) -> dict[str, Any]:
        return run(what, progress=self.progress, keep=self.kept)


def lighten(folder: Path, keep_projectors: bool) -> None:
    """Removes what nobody needs of a run that has its line: checkpoints, and projectors unless they are to stay."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if not keep_projectors:
        shutil.rmtree(folder / "clients", ignore_errors=True)
        (folder / "projector.safetensors").unlink(missing_ok=True)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
