"""The files of public image-caption sets, read item by item; nothing is unpacked.

A reader gives the items of one file. A bad record is the DataError that says so; a bad file raises it.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import re
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.data.records import check_id, check_texts, inside, load_json, parse_pairs, read_json
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
REPEATED = "repeated rows"
"""Rows of the same picture and caption as an earlier row."""
Fields = dict[str, Any]
"""Of a record: ``id``, ``image``, ``captions`` (a text or a list), and maybe ``label``, ``split``, ``group``,
``client``, ``folder`` (in which the picture may lie too), ``further`` and ``content``, as in ``Item``."""


class Item(NamedTuple):
    """One picture with its captions."""

    id: str
    """Unique in its set."""
    places: tuple[str, ...]
    """Where its picture may lie inside the pictures of the set, the likeliest first; none leads out of them."""
    captions: tuple[str, ...]
    """At least one, none empty."""
    origin: str
    """File and line or record, for messages."""
    label: str | None = None
    """What the picture shows, where the set says."""
    split: str | None = None
    """``"train"``, ``"val"`` or ``"test"``, where the set says."""
    group: str | None = None
    """What it belongs to that must be on one side of a split, a patient for example."""
    client: str | None = None
    """The client that owns it, where the set says."""
    content: bytes | None = None
    """The file of the picture where it comes with its record; None: it lies apart."""
    further: tuple[str, ...] = ()
    """Answers after the first, of a conversation."""


Rows = Iterator[Item | DataError]


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


def _pick(records: Iterable[tuple[str, Any]], pick: Callable[[Any], Fields]) -> Rows:
    """The item of each record by its place, or what is wrong with it."""
    for origin, record in records:
        found: Item | DataError
        try:
            found = record if isinstance(record, DataError) else _item(pick(record), origin)
        except DataError as error:
            found = error
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            found = DataError(f"{origin}: a field is missing or of another kind: {error!r}")
        yield found


def _item(found: dict[str, Any], origin: str) -> Item:
    """An item of the fields of a record.

    Raises:
        DataError: a path leads out of the pictures, a caption is no text or empty, a split is unknown.
    """
    key, place = check_id(found["id"], origin).strip(), inside(found["image"], origin)
    said = found["captions"]
    captions = said if isinstance(said, list) else [said]
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise DataError(f"{origin}: field `caption` must be a text that is not empty, got {said!r}")
    label, split, group, client, folder = (
        str(found[name]).strip() if found.get(name) is not None else None
        for name in ("label", "split", "group", "client", "folder")
    )
    if split is not None and split not in SPLITS:
        raise DataError(f"{origin}: field `split` is {split!r}; {nearest(split, SPLITS)}")
    if "client" in found and not (client and client.isprintable()):
        raise DataError(f"{origin}: field `client` must name a client, got {client!r}")
    texts, further = tuple(text.strip() for text in captions), tuple(found.get("further", ()))
    check_texts([key, place, *texts, *further, label or "", group or "", client or ""], origin)
    return Item(
        key,
        (f"{folder}/{place}", place) if folder else (place,),
        texts,
        origin,
        label or None,
        None if split is None else SPLITS[split],
        group or None,
        client,
        found.get("content"),
        further,
    )


def read_chats(path: Path, options: Options) -> Rows:
    """Conversations, see ``records``."""

    def pick(pairs: tuple[str, object]) -> Fields:
        first, *further = parse_pairs(pairs[1], pairs[0])
        texts = [one.caption for one in further]
        return {"id": first.id, "image": first.image, "captions": first.caption, "further": texts}

    return _pick(((origin, (origin, record)) for origin, record in read_json(path)), pick)


def read_rsicd(path: Path, options: Options) -> Rows:
    """RSICD in Karpathy's form: ``{"images": [{"filename", "split", "sentences": [{"raw": ...}, ...]}]}``.

    The class of a picture is in ``txtclasses_rsicd/<class>.txt`` (a file name a line), or begins its own name.
    """
    classes = {
        line.strip(): file.stem.lower()
        for file in sorted((path.parent / "txtclasses_rsicd").glob("*.txt"))
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    }

    def pick(one: Any) -> Fields:
        name, captions = one["filename"], [sentence["raw"] for sentence in one["sentences"]]
        own = re.match(r"([a-z]+)_\d+\.", name.lower())
        label = classes.get(name, own and own.group(1))
        return {"id": name, "image": name, "captions": captions, "label": label, "split": one.get("split")}

    return _pick(_members(path, load_json(path), "images"), pick)


def read_nwpu(path: Path, options: Options) -> Rows:
    """NWPU-Captions: ``{"airplane": [{"filename", "split", "raw", "raw_1", ..., "raw_4"}, ...], ...}``."""
    content = load_json(path)
    for label in content if isinstance(content, dict) else [""]:

        def pick(one: Any, label: str = label) -> Fields:
            captions = [one[key] for key in ("raw", "raw_1", "raw_2", "raw_3", "raw_4") if key in one]
            found = {"id": one["filename"], "image": one["filename"], "captions": captions, "split": one.get("split")}
            return {**found, "label": label, "folder": label}

        yield from _pick(_members(path, content, label), pick)


def read_coco(path: Path, options: Options) -> Rows:
    """COCO captions: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``."""
    content, captions = load_json(path), defaultdict[str, list[object]](list)
    for origin, note in _members(path, content, "annotations"):
        if "image_id" in note and "caption" in note:
            captions[str(note["image_id"])].append(note["caption"])
        else:
            yield DataError(f"{origin}: no field `image_id` or `caption`")
    folder = coco_folder(path)
    common = {"folder": folder, "split": "val" if folder and folder.startswith("val") else None}

    def pick(one: Any) -> Fields:
        return {"id": one["id"], "image": one["file_name"], "captions": captions.get(str(one["id"]), []), **common}

    yield from _pick(_members(path, content, "images"), pick)


def coco_folder(path: Path) -> str | None:
    """``captions_train2017.json`` -> ``train2017``."""
    match = re.search(r"(train|val)\d{4}", path.stem)
    return match.group() if match else None


def _members(path: Path, content: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of one list of a JSON file's object."""
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

    def pick(row: dict[str, str]) -> Fields:
        if None in row:
            raise ValueError(f"more cells than columns; quote a text that has {delimiter!r}")
        found = {kind: row[name] for kind, name in columns.items()}
        name, said = found["image"], derive(0, "row", *(str(found[k]).strip() for k in columns if k != "id"))
        seen[name] += 1
        if said in rows:
            raise DataError(f"{path}: row of {name} repeats another row", REPEATED)
        rows.add(said)
        return {"id": f"{name}#{seen[name]}" if seen[name] > 1 else name, "captions": found["caption"], **found}

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(path, file.readline(), columns)
            file.seek(0)
            table = csv.DictReader(file, delimiter=delimiter, strict=True)  # else an open quote takes all rows
            for row in table:
                start = table.line_num + 1
                yield from _pick([(f"{path}:{table.line_num}", row)], pick)
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
    found = "no column" if name not in best else f"{best.count(name)} columns"
    raise ConfigError(f"--{kind}-column: {found} {name!r} in {path}; {nearest(name, best)}")


def read_shard(path: Path, options: Options) -> Rows:
    """A WebDataset tar: files of one sample follow each other and share a name up to the first dot.

    As img2dataset writes them: ``000010005.jpg``, ``000010005.txt`` (the caption), ``000010005.json`` (with a key
    ``caption``; the user may name another). One sample is in memory at a time.
    """

    def pick(sample: tuple[str, dict[str, bytes]]) -> Fields:
        key, parts = sample
        kind = next((suffix for suffix in PICTURES if suffix in parts), None)
        if kind is None:
            raise ValueError(f"no picture; expected .{', .'.join(PICTURES)}")
        if "txt" in parts and options.caption_key is None:
            caption = parts["txt"].decode("utf-8-sig")
        else:
            caption = json.loads(parts["json"])[options.caption_key or "caption"]
        name = f"{path.name.split('.')[0]}/{key}"
        return {"id": name, "image": name, "captions": caption, "content": parts[kind]}

    return _pick(_samples(path), pick)


def _samples(path: Path) -> Iterator[tuple[str, tuple[str, dict[str, bytes]]]]:
    """Key and files of each sample of a tar, by their suffix."""
    try:
        with tarfile.open(path, "r:*") as shard:
            files = ((match, entry) for entry in shard if not entry.isdir() and (match := KEY.match(entry.name)))
            for key, entries in itertools.groupby(files, lambda one: one[0].group(1)):
                parts = dict[str, bytes]()
                for match, entry in entries:
                    suffix = match.group(2).lower()
                    if suffix in (*PICTURES, "txt", "json") and entry.isfile() and entry.size <= LARGEST_FILE:
                        file = shard.extractfile(entry)
                        parts[suffix] = file.read() if file else b""
                yield f"{path}: sample {key}", (key, parts)
            assert shard.fileobj is not None
            shard.fileobj.seek(shard.offset)
            if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # the library takes a corrupted header for the end
                raise tarfile.ReadError(f"corrupted at byte {shard.offset:,}")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar shard: {error}") from error


def read_parquet(path: Path, options: Options) -> Rows:
    """ROCOv2 of the Hugging Face hub: columns ``image`` (struct of ``bytes`` and ``path``), ``image_id``, ``caption``
    and ``cui`` (UMLS concepts: a list, or a text with ``;``). Sixteen rows are in memory at a time.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("layout roco needs pyarrow, which is not installed: pip install 'fedcmp[data]'") from error
    split = re.split(r"[-_.]", path.name.lower())[0]

    def pick(row: Any) -> Fields:
        said = row.get("cui") or []
        concepts = said.replace(",", ";").split(";") if isinstance(said, str) else said
        label = next((MODALITIES[one.strip()] for one in concepts if one.strip() in MODALITIES), None)
        found = {"id": row["image_id"], "image": row["image_id"], "captions": row["caption"]}
        return {**found, "label": label, "split": split if split in SPLITS else None, "content": row["image"]["bytes"]}

    try:
        with parquet.ParquetFile(path) as file:
            columns = ["image", "image_id", "caption", *(["cui"] if "cui" in file.schema_arrow.names else [])]
            batches = file.iter_batches(batch_size=16, columns=columns)
            rows = enumerate(row for batch in batches for row in batch.to_pylist())
            yield from _pick(((f"{path}: row {number}", row) for number, row in rows), pick)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path} cannot be read as a parquet file of image, image_id, caption: {error}") from error
