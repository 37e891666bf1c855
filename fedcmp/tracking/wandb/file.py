"""Reads back what W&B keeps on disk: a resumed run must know which of its rounds are there already."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, BLOCK, HEAD = 7, 2**15, 7
"""Bytes of a file's own header, of a block, and of the head of each frame in it."""
FULL, FIRST, LAST = 1, 2, 4
"""Kinds of frames: a whole record, its first part, its last; 3 is a part between."""


def read_log(path: Path) -> Iterator[Any]:
    """The ``wandb.proto.wandb_internal_pb2.Record`` messages of a ``.wandb`` file, up to where its writer was killed.

    The file is a log in the format of LevelDB (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a
    header of 7 bytes: blocks of 32 KiB with frames of checksum (uint32), length (uint16) and kind (uint8). Checksums
    are not looked at.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = path.read_bytes(), BEGIN, b""
    while position + HEAD <= len(content):
        left = BLOCK - position % BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, position) if left >= HEAD else (0, 0, 0)
        if not kind:  # the rest of the block is empty
            position += left
            continue
        part = content[position + HEAD : position + HEAD + length]
        if len(part) < length:
            return
        position += HEAD + length
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            yield Record.FromString(whole)


def last_step(folder: Path, run_id: str) -> int:
    """The last step that any part of a W&B run has on disk; -1 where there is none.

    Args:
        folder: W&B's folder, which holds one folder for each start of a run.
        run_id: the run.
    """
    last = -1
    for path in _parts(folder, run_id):
        for record in read_log(path):
            for item in record.history.item:
                if (item.key or "/".join(item.nested_key)) == "_step":
                    last = max(last, int(item.value_json))
    return last


def remove_empty_parts(folder: Path, run_id: str) -> None:
    """Removes what a process left that was killed before W&B wrote anything: `wandb sync` would stop there.

    Args:
        folder, run_id: as for ``last_step``.
    """
    for path in _parts(folder, run_id):
        if not any(record.HasField("run") for record in read_log(path)):
            shutil.rmtree(path.parent)


def _parts(folder: Path, run_id: str) -> list[Path]:
    paths = sorted(folder.glob(f"*/run-{run_id}.wandb"))
    return [path for path in paths if not path.parent.is_symlink()]  # latest-run is a second name of one of them
