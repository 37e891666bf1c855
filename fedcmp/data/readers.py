"""The files of public image-caption sets, read into records: each with its place, in the words of its set.

A bad record comes as the DataError that it is; a bad file raises it. Nothing is unpacked.
"""

from __future__ import annotations

import csv
import functools
import importlib
import itertools
import json
import re
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.data.records import load_json
from fedcmp.data.stores import LARGEST_FILE
from fedcmp.errors import ConfigError, DataError, nearest
from fedcmp.seeding import derive

SPLITS = {"train": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What sets call their splits -> what they are here. ``restval`` is Karpathy's word for more training pictures."""
MODALITIES = {
    "C0040405": "computed tomography",
    "C1306645": "x-ray",
    "C0024485": "magnetic resonance imaging",
    "C0041618": "ultrasound",
    "C0002978": "angiography",
    "C0032743": "positron emission tomography",
}
"""Concept of the Unified Medical Language System -> imaging modality, of those in ROCOv2's ``cui``."""
PICTURES = ("jpg", "jpeg", "png", "webp")
KEY = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)$")
"""Name of a shard's member: the sample's key, up to the first dot, and the suffix."""
Rows = Iterator[tuple[str, Any]]


class Repeated(DataError):
    """A row that repeats another one of the same picture: it is left out and counted."""


class Options(NamedTuple):
    """What a user may say about the files; None: the layout's own."""

    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    group_column: str | None = None
    client_column: str | None = None
    caption_key: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a table by their content; there is always one of pictures and one of captions."""
        named = {"image": "image", "caption": "caption"}
        return named | {kind.removesuffix("_column"): name for kind, name in self._asdict().items() if name is not None}


def read_rsicd(path: Path, options: Options) -> Rows:
    """RSICD in Karpathy's form: ``{"images": [{"filename", "split", "sentences": [{"raw": ...}, ...]}]}``.

    The class of a picture is in ``txtclasses_rsicd/<class>.txt`` (a file name a line), or begins its own name.
    """
    classes = {
        line.strip(): file.stem.lower()
        for file in sorted((path.parent / "txtclasses_rsicd").glob("*.txt"))
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    }
    for origin, record in _members(path, "images"):
        name, sentences = str(record.get("filename")), record.get("sentences")
        if isinstance(sentences, list):
            record["sentences"] = [one.get("raw") if isinstance(one, dict) else None for one in sentences]
        own = re.match(r"([a-z]+)_\d+\.", name.lower())
        yield origin, {**record, "label": classes.get(name, own and own.group(1))}


def read_nwpu(path: Path, options: Options) -> Rows:
    """NWPU-Captions: ``{"airplane": [{"filename", "split", "raw", "raw_1", ..., "raw_4"}, ...], ...}``."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with a list for each class")
    for label in content:
        for origin, record in _members(path, label, content):
            captions = [record[key] for key in ("raw", "raw_1", "raw_2", "raw_3", "raw_4") if key in record]
            yield origin, {**record, "raw": captions, "label": label}


def read_coco(path: Path, options: Options) -> Rows:
    """COCO captions: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``."""
    content = load_json(path)
    captions: dict[str, list[object]] = defaultdict(list)
    for origin, note in _members(path, "annotations", content):
        if "image_id" in note and "caption" in note:
            captions[str(note["image_id"])].append(note["caption"])
        else:
            yield origin, DataError(f"{origin}: no field `image_id` or `caption`")
    folder = coco_folder(path)
    split = "val" if folder and folder.startswith("val") else None
    for origin, record in _members(path, "images", content):
        own = captions.get(str(record.get("id")), [])
        yield origin, {**record, "folder": folder, "split": split, "annotations": own}


def coco_folder(path: Path) -> str | None:
    """``captions_train2017.json`` -> ``train2017``."""
    match = re.search(r"(train|val)\d{4}", path.stem)
    return match.group() if match else None


def _members(path: Path, key: str, content: Any = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of one list of a JSON file's object."""
    content = load_json(path) if content is None else content
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{path}: expected an object with a list of objects in member `{key}`")
    return ((f"{path}: {key}[{number}]", record) for number, record in enumerate(found))


def read_table(path: Path, options: Options) -> Rows:
    """A table, a row a caption; columns have names in the first row. Cells are parted by commas, semicolons or tabs.

    Without a column of ids, the picture's path is the id, and for its further rows a number behind it.
    """
    columns = options.columns
    start, seen, rows = 2, Counter[str](), set[int]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(path, file.readline(), columns)
            file.seek(0)
            table = csv.DictReader(file, delimiter=delimiter, strict=True)  # else an open quote takes all rows
            for row in table:
                origin, start = f"{path}:{table.line_num}", table.line_num + 1
                if None in row:
                    yield origin, DataError(f"{origin}: more cells than columns; quote a text that has {delimiter!r}")
                    continue
                name = row[columns["image"]]
                seen[name] += 1
                row["#"] = f"{name}#{seen[name]}" if seen[name] > 1 else name
                said = derive(0, "row", *(str(row[name]).strip() for kind, name in columns.items() if kind != "id"))
                yield origin, Repeated(f"{origin}: it repeats another row") if said in rows else row
                rows.add(said)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}:{start}: cannot be read: {error}; expected UTF-8 and closed quotes") from error


def _delimiter(path: Path, line: str, columns: Mapping[str, str]) -> str:
    """The first that parts the header into all wanted columns."""
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in (",", ";", "\t")}
    for delimiter, header in headers.items():
        if all(header.count(name) == 1 for name in columns.values()):
            return delimiter
    best = max(headers.values(), key=len)
    kind, name = next((kind, name) for kind, name in columns.items() if best.count(name) != 1)
    raise ConfigError(f"--{kind}-column: {best.count(name)} columns {name!r} in {path}; {nearest(name, best)}")


def read_shard(path: Path, options: Options) -> Rows:
    """A WebDataset tar: files of one sample follow each other and share a name up to the first dot.

    As img2dataset writes them: ``000010005.jpg``, ``000010005.txt`` (the caption), ``000010005.json`` (with a key
    ``caption``). One sample is in memory at a time.
    """
    try:
        with tarfile.open(path, "r:*") as shard:
            files = ((match, entry) for entry in shard if not entry.isdir() and (match := KEY.match(entry.name)))
            for key, entries in itertools.groupby(files, lambda one: one[0].group(1)):
                origin = f"{path}: sample {key}"
                try:
                    parts = dict(_parts(shard, entries, origin))
                    record = _sample(f"{path.name.split('.')[0]}/{key}", parts, options.caption_key, origin)
                except DataError as error:
                    yield origin, error
                else:
                    yield origin, record
            assert shard.fileobj is not None
            shard.fileobj.seek(shard.offset)
            if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # the library takes a corrupted header for the end
                raise tarfile.ReadError(f"corrupted at byte {shard.offset:,}")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar shard: {error}") from error


def _parts(
    shard: tarfile.TarFile, entries: Iterator[tuple[re.Match[str], tarfile.TarInfo]], origin: str
) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of a sample's files; files of no use are passed over unread."""
    for match, entry in entries:
        suffix = match.group(2).lower()
        if suffix in (*PICTURES, "txt", "json"):
            file = shard.extractfile(entry) if entry.isfile() and entry.size <= LARGEST_FILE else None
            if file is None:
                raise DataError(f"{origin}: member {entry.name!r} is a link, or larger than {LARGEST_FILE:,} bytes")
            yield suffix, file.read()


def _sample(name: str, parts: dict[str, bytes], caption_key: str | None, origin: str) -> dict[str, Any]:
    """The caption is that of the text file, else of the JSON file; of the JSON file alone if the user names its key."""
    kind = next((suffix for suffix in PICTURES if suffix in parts), None)
    if kind is None:
        raise DataError(f"{origin}: no picture; expected .{', .'.join(PICTURES)}")
    try:
        if "txt" in parts and caption_key is None:
            caption = parts["txt"].decode("utf-8-sig")
        else:
            caption = json.loads(parts["json"])[caption_key or "caption"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{origin}: no caption that can be read in its .txt or .json: {error!r}") from error
    return {"key": name, "caption": caption, "content": functools.partial(bytes, parts[kind])}


def read_parquet(path: Path, options: Options) -> Rows:
    """ROCOv2 of the Hugging Face hub: columns ``image`` (struct of ``bytes`` and ``path``), ``image_id``, ``caption``
    and ``cui`` (UMLS concepts: a list, or a text with ``;``).

    One row group is in memory at a time, and its pictures only if one of them is wanted.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("layout roco needs pyarrow, which is not installed: pip install 'fedcmp[data]'") from error
    split, first = SPLITS.get(re.split(r"[-_.]", path.name.lower())[0]), 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = ["image_id", "caption", *(["cui"] if "cui" in file.schema_arrow.names else [])]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=columns).to_pylist()
                pictures = functools.cache(functools.partial(file.read_row_group, group, columns=["image"]))
                for row, record in enumerate(rows):
                    origin = f"{path}: row {first + row}"
                    content = functools.partial(_cell, pictures, row, origin)
                    label = _modality(record.get("cui"))
                    yield origin, {**record, "label": label, "split": split, "content": content}
                first += len(rows)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path} cannot be read as a parquet file of image, image_id, caption: {error}") from error


def _cell(pictures: Callable[[], Any], row: int, origin: str) -> bytes:
    try:
        content = pictures().column("image")[row].as_py()["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{origin}: no picture in column `image`: {error}") from error
    if not isinstance(content, bytes) or len(content) > LARGEST_FILE:
        raise DataError(f"{origin}: column `image` must have `bytes` of a picture, at most {LARGEST_FILE:,}")
    return content


def _modality(concepts: object) -> str | None:
    found = concepts.replace(",", ";").split(";") if isinstance(concepts, str) else concepts
    named = map(str.strip, map(str, found if isinstance(found, list) else []))
    return next((MODALITIES[word] for word in named if word in MODALITIES), None)
