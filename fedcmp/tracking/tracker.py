"""Trackers take one record a round. Global rank 0 owns them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedcmp.errors import RunFolderError


class Tracker(Protocol):
    """A place for records."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One object a round; ``round`` and ``samples_seen`` are in it."""
        ...

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """The end of the run: its summary, whose ``exit`` says how it ended, and files worth keeping."""
        ...


class JsonlTracker:
    """metrics.jsonl: one line a round, on disk before the next round begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        self.records.append(clean)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(clean) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a power cut takes it no more: older checkpoints go now
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error}; is there disk space and permission?") from error

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Nothing to do: every line is on disk."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, up to the first corrupted one, which a killed writer leaves; none
    where there is no file."""
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


class Recorder:
    """A tracker that remembers, in front of another.

    Args:
        tracker: gets everything, too.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.records: list[dict[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        self.tracker.log(record)

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        self.tracker.close(summary, files)


class Trackers:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def log(self, record: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(record)

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        for tracker in self.trackers:
            tracker.close(summary, files)
