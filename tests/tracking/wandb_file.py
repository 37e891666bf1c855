"""What a W&B folder has, read from its one `.wandb` file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEGIN, BLOCK, HEAD = 7, 2**15, 7
"""Bytes of a file's own header, of a block, and of the head of each frame in it."""


@dataclass
class Part:
    """One start of a run."""

    path: Path
    run: Any = None
    """The record that names the run."""
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


def read_part(folder: Path) -> Part:
    """The one part of a run that has ended; W&B's service writes the end after ``finish`` returns.

    Args:
        folder: the run folder.
    """
    (path,) = (one for one in folder.glob("wandb/*run-*/run-*.wandb") if not one.parent.is_symlink())
    for _ in range(100):
        if (part := _read(path)).exit_code is not None:
            return part
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def _messages(content: bytes) -> Iterator[bytes]:
    """The file is a log of LevelDB: blocks of frames of checksum, length and kind (1 whole, 2 first, 4 last part)."""
    position, whole = BEGIN, b""
    while position + HEAD <= len(content):
        left = BLOCK - position % BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, position) if left >= HEAD else (0, 0, 0)
        if not kind:  # the rest of the block is empty
            position += left
            continue
        part = content[position + HEAD : position + HEAD + length]
        position += HEAD + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield whole


def _read(path: Path) -> Part:
    from wandb.proto.wandb_internal_pb2 import Record

    part = Part(path)
    for record in map(Record.FromString, _messages(path.read_bytes())):
        kind = record.WhichOneof("record_type")
        content = getattr(record, kind)
        if kind == "run":
            part.run = content
            _merge(part.config, content.config.update)
        elif kind in ("config", "summary"):
            _merge(getattr(part, kind), content.update)
        elif kind == "history":
            _merge(part.rows.append({}) or part.rows[-1], content.item)
        elif kind == "metric":
            options = {one.name for one, on in content.summary.ListFields() if on}
            part.metrics[content.name or content.glob_name] = (content.step_metric, options)
        elif kind == "artifact":
            part.artifacts[content.type] = content
        elif kind == "exit":
            part.exit_code = content.exit_code
    return part


def _merge(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = target
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
