"""runs.jsonl: one line for each run that ended, finished or failed, and what was learnt from it.

Lines are only ever added. Of two lines with one folder the later one counts (a failed run was tried again). The last
line of a (setting, method, seed, stage), and, where it tunes, of its options, is the one that the comparison as it was
last asked for shows: where a run that is there already is asked for under another label, its line is added again under
that.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcmp.credentials import mask
from fedcmp.errors import RunFolderError
from fedcmp.report.summary import versions
from fedcmp.compare.cells import FINAL, Cell, Job
from fedcmp.compare.schedule import Record


class Ledger:
    """The records in a comparison folder; what a kill left of the last line is cut off.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        """By the id of the job."""
        self._shown: dict[tuple[str, ...], str] = {}
        for record in _read(path):
            self._note(record)

    def add(self, record: Record) -> None:
        """Writes a line, to the disk."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error}; is there disk space and permission?") from error
        self._note(record)

    def claim(self, job: Job) -> None:
        """Says of a run that is there that this job asks for it, if the file does not say so yet."""
        record = self.records.get(job.id)
        if record is not None and self._shown.get(job.cell.key()) != record["folder"]:
            self.add({**record, "cell": job.cell._asdict()})

    def forget_failed(self) -> None:
        """Failed runs count as never run; their lines stay."""
        self.records = {id_: record for id_, record in self.records.items() if record["status"] == "finished"}

    def _note(self, record: Record) -> None:
        self.records[Path(record["folder"]).name] = record
        self._shown[Cell(**record["cell"]).key()] = record["folder"]


def finished(job: Job, folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a run that finished. A loss that is no number is a failure: nothing could be ranked by it."""
    loss = summary["val/loss"]["end"]
    test = summary.get("test") or None
    bad = [
        name
        for name, value in (("validation", loss), ("test", test["loss"] if test and job.cell.stage == FINAL else 0.0))
        if value is None or not math.isfinite(value)
    ]
    if bad:
        return failed(job, f"the {bad[0]} loss at the end is no finite number: training diverged")
    return {
        **_head(job, "finished", None),
        "val_loss": loss,
        "test": test,
        "samples_seen": summary["samples_seen"],
        "seconds": summary["seconds"],
        "bytes": _traffic(folder / "metrics.jsonl"),
        "projector_sha256": summary.get("projector_sha256"),
        "folder": f"cells/{job.id}",
        "versions": summary["versions"],
        "device": summary["device"],
    }


def failed(job: Job, error: str) -> dict[str, Any]:
    """The line of a run that failed."""
    nothing = dict.fromkeys(("val_loss", "test", "samples_seen", "seconds", "bytes", "projector_sha256"))
    last = {"folder": f"cells/{job.id}", "versions": versions(), "device": None}
    return {**_head(job, "failed", error), **nothing, **last}


def _head(job: Job, status: str, error: str | None) -> dict[str, Any]:
    return {"cell": job.cell._asdict(), "status": status, "error": None if error is None else mask(error)}


def _traffic(metrics: Path) -> dict[str, float | None]:
    """Bytes over all rounds and clients; None where nothing is sent."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found: dict[str, float | None] = {}
    for way in ("up", "down"):
        sent = [record[f"bytes/{way}"] for record in records if record.get(f"bytes/{way}") is not None]
        found[way] = sum(sent) if sent else None
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    torn = lines.pop()  # empty, where the file ends as it should
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            Cell(**record["cell"]), record["status"], record["folder"]
        except (ValueError, TypeError, KeyError) as error:
            what = f"{type(error).__name__} {error}"
            raise RunFolderError(f"{path}, line {number}: no record of a run: {what}") from error
        records.append(record)
    if torn:
        whole = path.with_name(path.name + ".partial")
        whole.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(whole, path)
    return records
