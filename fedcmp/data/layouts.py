"""How public image-caption sets lie on disk: a row each, of a reader and the names of its fields."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.data.readers import (
    SPLITS,
    Options,
    coco_folder,
    read_coco,
    read_nwpu,
    read_parquet,
    read_rsicd,
    read_shard,
    read_table,
)
from fedcmp.data.records import answers_of, check_id, check_texts, id_of, inside, picture_of, read_json
from fedcmp.errors import ConfigError, DataError, nearest


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
    content: Callable[[], bytes] | None = None
    """Reads the picture where it comes with its record, before the next item is taken; None: it lies apart."""
    further: tuple[str, ...] = ()
    """Answers after the first, of a conversation."""


class Fields(NamedTuple):
    """What a set calls the fields of its records; empty: it has none."""

    id: str
    image: str
    """The path of the picture."""
    caption: str
    """A text or a list of texts."""
    label: str = ""
    split: str = ""
    group: str = ""
    client: str = ""
    content: str = ""
    folder: str = ""
    """A folder that the picture may lie in."""


class Layout(NamedTuple):
    """How one layout is read."""

    read: Callable[[Path, Options], Iterator[tuple[str, Any]]]
    """The records of one file, see ``readers``."""
    fields: Fields | None
    """None: records are conversations, see ``records``."""
    files: tuple[str, ...]
    """Patterns of the files to look for where a folder is given, the likeliest first."""
    images: Callable[[Sequence[Path]], list[Path]] | None
    """Where the pictures of such files are likely to lie; None: they come with the records."""
    many: bool = False
    """Whether several such files of a folder belong together."""
    options: tuple[str, ...] = ()
    """The fields of Options that it knows."""


def _beside(*names: str) -> Callable[[Sequence[Path]], list[Path]]:
    return lambda files: [files[0].parent / name for name in names]


def _coco_images(files: Sequence[Path]) -> list[Path]:
    """The folder or zip named like the file, beside it or ``annotations``; for several files, their common folder."""
    homes = [files[0].parent.parent, files[0].parent]
    names = [name for name in map(coco_folder, files) if name]
    if len(names) == 1 == len(files):
        return [home / f"{part}{names[0]}{end}" for home in homes for part in ("", "images/") for end in ("", ".zip")]
    homes += [home / "images" for home in homes]
    return [home for home in homes if names and all((home / name).is_dir() for name in names)]


_LLAVA = Layout(
    lambda path, options: read_json(path),
    None,
    ("blip_laion_cc_sbu_558k.json", "*.json", "*.jsonl"),
    _beside("images.zip", "images"),
)
LAYOUTS = {
    "llava": _LLAVA,
    "messages": _LLAVA._replace(images=_beside("images.zip", "images", ".")),
    "llava-med": _LLAVA._replace(
        files=("llava_med_alignment_500k.json", "alignment/*.json", "*.json", "*.jsonl"),
        images=_beside("images", "images.zip", "../images", "../images.zip"),
    ),
    "roco": Layout(
        read_parquet,
        Fields("image_id", "image_id", "caption", "label", "split", content="content"),
        ("data/*.parquet", "*.parquet", "**/*.parquet"),
        None,
        many=True,
    ),
    "rsicd": Layout(
        read_rsicd,
        Fields("filename", "filename", "sentences", "label", "split"),
        ("dataset_rsicd.json", "*.json"),
        _beside("RSICD_images", "RSICD_images.zip", "images", "images.zip"),
    ),
    "nwpu": Layout(
        read_nwpu,
        Fields("filename", "filename", "raw", "label", "split", folder="label"),
        ("dataset_nwpu.json", "*.json"),
        _beside("NWPU_images", "NWPU_images.zip", "images", "images.zip"),
    ),
    "coco": Layout(
        read_coco,
        Fields("id", "file_name", "annotations", split="split", folder="folder"),
        ("captions_*.json", "annotations/captions_*.json"),
        _coco_images,
        many=True,
    ),
    "webdataset": Layout(
        read_shard,
        Fields("key", "key", "caption", content="content"),
        ("*.tar", "*.tar.gz", "*.tgz", "**/*.tar"),
        None,
        many=True,
        options=("caption_key",),
    ),
    "csv": Layout(
        read_table,
        Fields("#", "image", "caption"),
        ("*.csv", "*.tsv"),
        _beside("images", "images.zip", "pictures", "pictures.zip", "."),
        options=tuple(name for name in Options._fields if name.endswith("_column")),
    ),
}


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout {name!r}; {nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def read_items(layout: Layout, path: Path, options: Options) -> Iterator[Item | DataError]:
    """The items of one file; a bad record comes as the DataError that it is, a bad file raises it.

    Raises:
        ConfigError: a column is missing, or a package.
        DataError: the file cannot be read.
    """
    fields = layout.fields
    if fields is not None and layout.read is read_table:
        fields = fields._replace(**options.columns)
    for origin, record in layout.read(path, options):
        found: Item | DataError
        try:
            if isinstance(record, DataError):
                raise record
            if not isinstance(record, dict):
                raise DataError(f"{origin}: expected a JSON object, got {type(record).__name__}")
            found = _item(record, fields, origin) if fields else _chat_item(record, origin)
        except DataError as error:
            found = error
        yield found


def _chat_item(record: dict[str, Any], origin: str) -> Item:
    first, *further = answers_of(record, origin)
    plain = {"id": id_of(record, origin), "image": picture_of(record, origin), "conversations": [first]}
    check_texts(further, origin)
    item = _item(plain, Fields("id", "image", "conversations"), origin)
    return item._replace(further=tuple(text.strip() for text in further))


def _item(record: dict[str, Any], fields: Fields, origin: str) -> Item:
    """An item of a record.

    Raises:
        DataError: a field is missing, a path leads out of the pictures, a caption is no text or empty, a split is
            unknown.
    """
    for name in (fields.image, fields.id, fields.caption):
        if name not in record:
            raise DataError(f"{origin}: no field `{name}`; {nearest(name, map(str, record))}")
    place = inside(record[fields.image], origin, fields.image)
    said = record[fields.caption]
    captions = said if isinstance(said, list) else [said]
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise DataError(f"{origin}: field `{fields.caption}` must be a text that is not empty, got {said!r}")
    label, split, group, client, folder = (
        str(record[name]).strip() if name and record.get(name) is not None else None
        for name in (fields.label, fields.split, fields.group, fields.client, fields.folder)
    )
    if split is not None and split not in SPLITS:
        raise DataError(f"{origin}: field `{fields.split}` is {split!r}; {nearest(split, SPLITS)}")
    if fields.client and not (client and client.isprintable()):
        raise DataError(f"{origin}: field `{fields.client}` must name a client, got {client!r}")
    key = check_id(record[fields.id], origin, fields.id).strip()
    check_texts([key, place, *captions, label or "", group or "", client or ""], origin)
    return Item(
        key,
        (f"{folder}/{place}", place) if folder else (place,),
        tuple(text.strip() for text in captions),
        origin,
        label or None,
        None if split is None else SPLITS[split],
        group or None,
        client,
        record[fields.content] if fields.content else None,
    )


def find_files(words: Sequence[str], layout: Layout) -> list[Path]:
    """The files that the words name, in their order, each once.

    A word is a file, a glob, a brace list of shards, or a folder, which means the layout's files in it.

    Raises:
        DataError: a word names nothing, or a folder with several files that might be meant.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found += _in_folder(path, layout)
            continue
        for name in [str(path)] if path.exists() else expand_braces(str(path)):
            named = [Path(one) for one in sorted(glob.glob(name)) or [name]]
            if not named[0].is_file():
                raise DataError(f"no file {named[0]}" + (f" (of {word})" if str(named[0]) != word else ""))
            found += named
    return list(dict.fromkeys(found))


def _in_folder(folder: Path, layout: Layout) -> list[Path]:
    for pattern in layout.files:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1 and not layout.many:
            raise DataError(f"{folder} has {len(found)} files {pattern}; name the one that is meant")
        if found:
            return found
    raise DataError(f"{folder} has none of {', '.join(layout.files)}; name the file")


def expand_braces(text: str) -> list[str]:
    """What a shell makes of ``{00..11}`` and ``{a,b}``.

    >>> expand_braces("shard-{08..10}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    >>> expand_braces("{train,val}.tar")
    ['train.tar', 'val.tar']
    """
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match.group(1))
    if numbers:
        first, last = numbers.groups()
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        parts = match.group(1).split(",")
    return [one for part in parts for one in expand_braces(text[: match.start()] + part + text[match.end() :])]
