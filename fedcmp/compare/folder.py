"""A comparison folder: what was asked (compare.json), a line for each run that ended (runs.jsonl), the tables.

Lines are only ever added to runs.jsonl. Of two lines with one folder the later one counts (a failed run was tried
again). The last line of a cell is the one that the comparison, as it was last asked for, shows: where a run is asked
for under another label, its line is added again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcmp.compare.again import command
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.spec import Study, from_json, to_json
from fedcmp.credentials import mask
from fedcmp.errors import RunFolderError
from fedcmp.federation.folder import RunFolder, claim
from fedcmp.report.comparison.results import FINAL, Result, read_results
from fedcmp.report.files import read_object, read_objects
from fedcmp.report.summary import versions
from fedcmp.staging import append_line


class Place:
    """The places inside a comparison folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = path / "compare.json"
        self.runs = path / "runs.jsonl"
        self.cells = path / "cells"
        self.features = path / "features"
        """Of runs without ``data.cache_dir``, until all have ended."""

    @property
    def name(self) -> str:
        """The name of the comparison, also in W&B."""
        return self.path.resolve().name

    def is_begun(self) -> bool:
        """Whether a comparison was begun here."""
        return self.asked.is_file()

    def read(self) -> Study:
        """What was last asked for here.

        Raises:
            RunFolderError: compare.json cannot be read.
            ConfigError: a config in it is not valid any more.
        """
        return from_json(read_object(self.asked), str(self.asked))

    def write(self, study: Study, jobs: Jobs, cost: Mapping[str, float] | None = None) -> None:
        """Writes compare.json; the cost of ``encode_features`` is added to that of earlier calls."""
        features = read_object(self.asked).get("features", {})
        if cost is not None:
            features = {**cost, **{key: features.get(key, 0) + cost[key] for key in ("seconds", "encoded")}}
        grid: dict[str, dict[str, Any]] = {setting: {} for setting in jobs.settings}
        for (setting, entrant), options in jobs.grids.items():
            grid[setting][entrant] = options
        content = {"name": self.name, "command": command(study), **to_json(study), "grid": grid, "features": features}
        RunFolder(self.path).write_json(self.asked, content)

    def write_tables(self, tables: Mapping[str, str]) -> None:
        """By kind: md, csv, tex, json."""
        for kind, text in tables.items():
            RunFolder(self.path).write_text(self.path / f"table.{kind}", text)


def open_place(out: Path | None, stem: str) -> Place:
    """The folder of a comparison: one that was begun, or a new one.

    Args:
        out: the folder that the user named; None: ``runs/compare-<stem>-N``.
        stem: the middle of the name of a folder that the user did not name.

    Raises:
        RunFolderError: it has other files, or cannot be made.
    """
    if out is not None and Place(out).is_begun():
        return Place(out)
    try:
        return Place(claim(out, f"compare-{stem}", number=True).path)
    except RunFolderError as error:
        raise RunFolderError(f"--out: {error}") from error


class Ledger:
    """The lines of runs.jsonl; the rest of a line that a kill cut is removed.

    Raises:
        RunFolderError: the file cannot be read, or is no runs.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        """By the id of the job."""
        self._shown: dict[tuple[str, ...], str] = {}
        for result in read_results(path):
            self._note(result)
        content = path.read_bytes() if path.exists() else b""
        if not content.endswith(b"\n") and content:
            os.truncate(path, content.rfind(b"\n") + 1)

    def add(self, result: Result) -> None:
        """Writes a line, to the disk."""
        append_line(self.path, {**result.record, "cell": result.cell._asdict()})
        self._note(result)

    def claim(self, job: Job) -> None:
        """Adds the line of a run that has ended again, if the last of its cell is another one."""
        result = self.results.get(job.id)
        if result is not None and self._shown.get(job.cell.key()) != result.record["folder"]:
            self.add(Result(job.cell, result.record))

    def forget_failed(self) -> None:
        """Failed runs count as never run; their lines stay."""
        self.results = {id_: one for id_, one in self.results.items() if one.finished}

    def _note(self, result: Result) -> None:
        self.results[result.id] = result
        self._shown[result.cell.key()] = result.record["folder"]


def finished(job: Job, folder: Path, summary: Mapping[str, Any]) -> Result:
    """The result of a run that finished; one whose loss is no finite number has failed."""
    loss, test = summary["val/loss"]["end"], summary.get("test") or None
    needed = [loss, test["loss"]] if test and job.cell.stage == FINAL else [loss]
    if not all(value is not None and math.isfinite(value) for value in needed):
        return failed(job, "the loss at the end is no finite number: training diverged")
    rounds = read_objects(folder / "metrics.jsonl")
    sent: dict[str, int | None] = {}
    for way in ("up", "down"):
        sizes = [one[f"bytes/{way}"] for one in rounds if one.get(f"bytes/{way}") is not None]
        sent[way] = sum(sizes) if sizes else None
    kept = ("samples_seen", "seconds", "projector_sha256", "versions", "device")
    return _result(job, None, val_loss=loss, test=test, bytes=sent, **{key: summary.get(key) for key in kept})


def failed(job: Job, error: str) -> Result:
    """The result of a run that failed."""
    return _result(job, mask(error), versions=versions())


def _result(job: Job, error: str | None, **measured: Any) -> Result:
    keys = ("val_loss", "test", "samples_seen", "seconds", "bytes", "projector_sha256", "folder", "versions", "device")
    record = {
        "cell": job.cell._asdict(),
        "status": "finished" if error is None else "failed",
        "error": error,
        **dict.fromkeys(keys),
        "folder": f"cells/{job.id}",
        **measured,
    }
    return Result(job.cell, record)
