"""One run of a comparison: begun, continued, or found done."""

from __future__ import annotations

import logging
import shutil
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.compare.folder import failed, finished
from fedcmp.compare.jobs import Job, with_options
from fedcmp.errors import CheckpointError, ConfigError, DataError, FedcmpError, RunFolderError
from fedcmp.federation.folder import RunFolder
from fedcmp.report.comparison.results import BOUNDS, Result
from fedcmp.report.files import read_object
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.parts import Kept
from fedcmp.runs.train import resume, train
from fedcmp.tracking.progress import Progress

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """How a run ended: with a result, or without."""

    result: Result | None
    stopped: bool = False
    """A signal asked the run to stop; it can go on."""
    ended: str | None = None
    """Why further runs are pointless, for example a full disk."""


class Executor:
    """Runs jobs one after another; what they share (models, features) is kept between them.

    Args:
        cells: the folder of the runs.
        group: the W&B group.
        features: the cache of runs that have none of their own.
        alone: show the progress of each run; of several processes only a line for each run is shown.
    """

    def __init__(self, cells: Path, group: str, features: Path | None = None, alone: bool = False) -> None:
        self.cells, self.group, self.features = cells, group, features
        self.progress = Progress(least=60.0) if alone else Progress(enabled=False)
        self.kept = Kept()

    def __call__(self, job: Job) -> Answer:
        """Runs the job. An error inside the run is a result; an error of the disk is not."""
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
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            return Answer(failed(job, f"{type(error).__name__}: {error}"))

    def _run(self, job: Job, folder: Path) -> dict[str, Any]:
        """Begins the run, or goes on with it where a checkpoint of it is left."""
        places = {"run.dir": str(folder), "run.name": job.id, "wandb.group": self.group}
        if self.features is not None and job.config.data.cache_dir is None:
            places["data.cache_dir"] = str(self.features)
        begun = RunFolder(folder)
        if job.cell.method not in BOUNDS and begun.config.is_file() and begun.split.is_file():
            try:
                return resume(folder, progress=self.progress, keep=self.kept)
            except (CheckpointError, ConfigError, DataError) as error:  # of data: they have moved since
                log.warning("%s begins again: its checkpoints cannot be used (%s)", folder, error)
        if folder.exists():
            shutil.rmtree(folder)
        begin = {"centralized": train_centralized, "local": train_local}.get(job.cell.method, train)
        return begin(with_options(job.config, places), progress=self.progress, keep=self.kept)


def lighten(folder: Path, keep_projectors: bool) -> None:
    """Removes the checkpoints of a finished run, and its projectors unless they are to stay."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if not keep_projectors:
        shutil.rmtree(folder / "clients", ignore_errors=True)
        (folder / "projector.safetensors").unlink(missing_ok=True)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / "summary.json")
    except RunFolderError:
        return {}
