"""Trackers take one record a round. Global rank 0 owns them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedcmp.staging import append_line


class Tracker(Protocol):
    """A place for records."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One object a round; ``round`` and ``samples_seen`` are in it."""

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """The end of the run: its summary, whose ``exit`` says how it ended, and files worth keeping."""


class Trackers:
    """Several trackers as one, which also keeps the records."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers
        self.records: list[dict[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        for tracker in self.trackers:
            tracker.log(record)

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        for tracker in self.trackers:
            tracker.close(summary, files)


class JsonlTracker:
    """metrics.jsonl: one line a round, on disk before the next round begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, record: Mapping[str, Any]) -> None:
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        append_line(self.path, clean)  # older checkpoints are removed now, so it must survive a power cut

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Every line is on disk already."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, up to the first corrupted one, which a killed writer leaves."""
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
