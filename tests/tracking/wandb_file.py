"""What a W&B folder holds, read back from its `.wandb` files, oldest part first."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcmp.tracking.wandb.file import read_log


@dataclass
class Part:
    """One start of a run."""

    path: Path
    run_id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One for each logged step; nested objects as they were logged."""
    metrics: dict[str, tuple[str, set[str]]] = field(default_factory=dict)
    """Name -> what it is drawn over, and what the summary keeps of it."""
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    """Type -> the artifact's record."""
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]

    @property
    def files(self) -> Path:
        return self.path.parent / "files"


def read_parts(folder: Path) -> list[Part]:
    """The parts of a run of which the last one has ended; W&B's service writes the end after ``finish`` returns.

    Args:
        folder: the run folder.
    """
    for _ in range(100):
        parts = _read_parts(folder)
        if parts[-1].exit_code is not None:
            return parts
        time.sleep(0.1)
    raise AssertionError(f"the last part in {folder} has no end")


def _read_parts(folder: Path) -> list[Part]:
    paths = [path for path in folder.glob("wandb/*run-*/run-*.wandb") if not path.parent.is_symlink()]
    return [_read_part(path) for path in sorted(paths)]


def _read_part(path: Path) -> Part:
    part = Part(path)
    for record in read_log(path):
        kind = record.WhichOneof("record_type")
        content = getattr(record, kind)
        if kind == "run":
            part.run_id, part.name, part.project = content.run_id, content.display_name, content.project
            part.group, part.tags = content.run_group, list(content.tags)
            part.config |= _items(content.config.update)
        elif kind == "config":
            part.config |= _items(content.update)
        elif kind == "history":
            part.rows.append(_items(content.item))
        elif kind == "metric":
            options = {one.name for one, on in content.summary.ListFields() if on}
            part.metrics[content.name or content.glob_name] = (content.step_metric, options)
        elif kind == "summary":
            _merge(part.summary, content.update)
        elif kind == "artifact":
            part.artifacts[content.type] = content
        elif kind == "exit":
            part.exit_code = content.exit_code
    return part


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _merge(found, items)
    return found


def _merge(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = target
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
