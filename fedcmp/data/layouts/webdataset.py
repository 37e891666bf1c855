"""WebDataset tar shards: files of one sample stand together and share a name up to the first dot.

``000010005.jpg`` (or .jpeg, .png, .webp), ``000010005.txt`` (the caption) and ``000010005.json`` (with a key
``caption``), as img2dataset writes them. Nothing is unpacked: files are read in memory, one sample at a time.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fedcmp.data.images import LARGEST_FILE
from fedcmp.data.json_stream import LARGEST
from fedcmp.data.layouts.base import Item, Layout, Options, each, inside, item, member
from fedcmp.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")

Parts = dict[str, "bytes | DataError"]


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The samples of one shard. A member that is a link or leads out of the shard makes its sample a bad record.

    Raises:
        DataError: the shard is no tar, or corrupted.
    """
    try:
        with tarfile.open(path, "r:*") as shard:
            entries = ((f"{path}: sample {key}", (key, parts)) for key, parts in _samples(shard))
            yield from each(entries, _parser(path.name.split(".")[0], options.caption_key))
            _check_end(shard)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar shard: {error}") from error


def _samples(shard: tarfile.TarFile) -> Iterator[tuple[str, Parts]]:
    """Key and parts of each sample; files of no use are passed over unread."""
    current, parts = "", Parts()
    for entry in shard:
        match = re.match(r"((?:.*/|)[^.]+)\.([^/]*)$", entry.name)
        unsafe = _unsafe(entry)
        if entry.isdir() or (unsafe is None and match is None):
            continue
        key, suffix = (match.group(1), match.group(2).lower()) if match else (entry.name, "")
        if key != current:
            if parts:
                yield current, parts
            current, parts = key, Parts()
        if unsafe is not None:
            parts[suffix] = unsafe
        elif suffix in parts:
            parts[suffix] = DataError(f"member {entry.name!r} stands twice")
        elif suffix in PICTURES + TEXTS and entry.size > (LARGEST if suffix in TEXTS else LARGEST_FILE):
            parts[suffix] = DataError(f"member {entry.name!r} has {entry.size:,} bytes, too many to be read")
        elif suffix in PICTURES + TEXTS:
            content = shard.extractfile(entry)
            assert content is not None  # of a regular file
            parts[suffix] = content.read()
    if parts:
        yield current, parts


def _unsafe(entry: tarfile.TarInfo) -> DataError | None:
    if not entry.isdir() and not entry.isfile():
        return DataError(f"member {entry.name!r} is a link or a device, not a file")
    try:
        inside(entry.name, "shard", "member")
    except DataError:
        return DataError(f"member {entry.name!r} leads out of the shard")
    return None


def _parser(stem: str, caption_key: str | None) -> Callable[[object, str], Item]:
    def parse(record: object, origin: str) -> Item:
        assert isinstance(record, tuple)
        key, parts = record
        for part in parts.values():
            if isinstance(part, DataError):
                raise DataError(f"{origin}: {part}")
        kind = next((suffix for suffix in PICTURES if suffix in parts), None)
        if kind is None:
            raise DataError(f"{origin}: no picture; expected one of {', '.join(f'{key}.{end}' for end in PICTURES)}")
        picture: bytes = parts[kind]
        return item(
            f"{stem}/{key}",
            [f"{stem}/{key}"],
            _captions(parts, caption_key, origin),
            origin,
            fields=("key", "key", caption_key or "caption"),
            content=lambda: picture,
        )

    return parse


def _captions(parts: dict[str, bytes], caption_key: str | None, origin: str) -> list[object]:
    """Of the text file, else of the JSON file; of the JSON file alone where the user names its key."""
    try:
        if "txt" in parts and caption_key is None:
            return [parts["txt"].decode("utf-8-sig")]
        if "json" not in parts:
            raise DataError(f"{origin}: no caption; expected a .json file" + ("" if caption_key else " or a .txt file"))
        found = member(json.loads(parts["json"]), caption_key or "caption", origin)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{origin}: its caption cannot be read: {error}") from error
    return found if isinstance(found, list) else [found]


def _check_end(shard: tarfile.TarFile) -> None:
    """The reader of the standard library takes a corrupted header for the end."""
    file = shard.fileobj
    assert file is not None
    file.seek(shard.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"corrupted at byte {shard.offset:,}")


LAYOUT = Layout(read, ("*.tar", "*.tar.gz", "*.tgz", "**/*.tar"), True, None, frozenset({"caption_key"}))
