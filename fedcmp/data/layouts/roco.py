"""ROCOv2 as parquet files on the Hugging Face hub: radiology pictures inside the files.

Columns ``image`` (struct of ``bytes`` and ``path``), ``image_id``, ``caption`` and ``cui`` (UMLS concepts: a list, or a
text with ``;``); files ``data/train-*.parquet``, ``validation-*``, ``test-*``. The label is the imaging modality, which
the set gives every picture as one of its concepts.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedcmp.data.images import LARGEST_FILE
from fedcmp.data.layouts.base import SPLITS, Item, Layout, Options, each, item
from fedcmp.errors import ConfigError, DataError, nearest

COLUMNS = ("image", "image_id", "caption")
MODALITIES = {
    "C0040405": "computed tomography",
    "C1306645": "x-ray",
    "C0024485": "magnetic resonance imaging",
    "C0041618": "ultrasound",
    "C0002978": "angiography",
    "C0032743": "positron emission tomography",
}
"""Concept of the Unified Medical Language System -> imaging modality, of those that stand in ROCOv2's ``cui``."""


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The rows of one file; one row group is in memory at a time, and its pictures only if one of them is wanted.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the file is no parquet file, or has other columns.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            "layout roco reads parquet files and needs pyarrow, which is not installed: pip install 'fedcmp[data]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path} cannot be read as a parquet file: {error}") from error
    with file:
        present = file.schema_arrow.names
        for column in COLUMNS:
            if column not in present:
                raise DataError(f"{path}: no column `{column}`; {nearest(column, present)}")
        light = [column for column in ("image_id", "caption", "cui") if column in present]
        split, first = _split(path), 0
        for group in range(file.num_row_groups):
            pictures = _Pictures(file, group, path)
            rows = _rows(file, group, light, path)
            entries = ((f"{path}: row {first + row}", (row, cells)) for row, cells in enumerate(rows))
            yield from each(entries, _parser(pictures, split))
            first += len(rows)


def _parser(pictures: _Pictures, split: str | None) -> Callable[[object, str], Item]:
    def parse(record: object, origin: str) -> Item:
        assert isinstance(record, tuple)
        row, cells = record
        name = cells["image_id"]
        return item(
            name,
            [name],
            [cells["caption"]],
            origin,
            fields=("image_id", "image_id", "caption"),
            label=_modality(cells.get("cui")),
            split=split,
            content=lambda: pictures.get(row, origin),
        )

    return parse


def _rows(file: Any, group: int, columns: list[str], path: Path) -> list[dict[str, Any]]:
    try:
        return file.read_row_group(group, columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: row group {group} cannot be read: {error}") from error


class _Pictures:
    """The pictures of one row group, read when the first is asked for."""

    def __init__(self, file: Any, group: int, path: Path) -> None:
        self._file, self._group, self._path = file, group, path
        self._column: Any = None

    def get(self, row: int, origin: str) -> bytes:
        if self._column is None:
            try:
                self._column = self._file.read_row_group(self._group, columns=["image"]).column("image")
            except (OSError, ValueError) as error:
                raise DataError(f"{self._path}: row group {self._group} cannot be read: {error}") from error
        cell = self._column[row].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(content, bytes):
            raise DataError(f"{origin}: column `image` holds no `bytes` of a picture")
        if len(content) > LARGEST_FILE:
            raise DataError(f"{origin}: the picture has {len(content):,} bytes, more than {LARGEST_FILE:,}")
        return content


def _split(path: Path) -> str | None:
    """``validation-00000-of-00004.parquet`` -> ``validation``."""
    word = re.split(r"[-_.]", path.name.lower())[0]
    return word if word in SPLITS else None


def _modality(concepts: object) -> str | None:
    found = concepts.replace(",", ";").split(";") if isinstance(concepts, str) else concepts
    if not isinstance(found, list):
        return None
    return next((MODALITIES[word.strip()] for word in map(str, found) if word.strip() in MODALITIES), None)


LAYOUT = Layout(read, ("data/*.parquet", "*.parquet", "**/*.parquet"), True, None)
