"""What all layouts have in common: an item, its checks, and how a layout is described."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedcmp.data.records import check_text
from fedcmp.errors import DataError, nearest

SPLITS = {"train": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What sets call their splits -> what they are here. ``restval`` is Karpathy's word for more training pictures."""


class Item(NamedTuple):
    """One picture with its captions, as a layout gives it."""

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
    """What it belongs to that must not be torn apart, a patient for example."""
    client: str | None = None
    """Whose it is, where the set says."""
    further: tuple[str, ...] = ()
    """Answers after the first, of a conversation."""
    content: Callable[[], bytes] | None = None
    """Reads the picture where it comes with its record, before the next item is taken; None: it lies apart."""


class Repeated(DataError):
    """A row that says what a row before it says of the same picture: it is left out and counted."""


class Options(NamedTuple):
    """What a user may say about the files; None: the layout's own."""

    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    group_column: str | None = None
    client_column: str | None = None
    caption_key: str | None = None


class Layout(NamedTuple):
    """How one layout is read."""

    read: Callable[[Path, Options], Iterator[Item | DataError]]
    """The items of one file; a bad record comes as the DataError that it is, a bad file raises it."""
    files: tuple[str, ...]
    """Patterns of the files to look for where a folder is given, the likeliest first."""
    many: bool
    """Whether a folder may hold several such files that belong together."""
    images: Callable[[Sequence[Path]], list[Path]] | None
    """Where the pictures of such files are likely to lie; None: they come with the records."""
    options: frozenset[str] = frozenset()
    """The fields of Options that it knows."""


def item(
    record_id: object,
    places: Sequence[object],
    captions: Sequence[object],
    origin: str,
    *,
    fields: tuple[str, str, str] = ("id", "image", "caption"),
    label: object = None,
    split: object = None,
    group: object = None,
    further: Sequence[str] = (),
    content: Callable[[], bytes] | None = None,
) -> Item:
    """An item of what a record holds.

    Args:
        fields: what the set calls id, picture and caption, for messages.

    Raises:
        DataError: the id is no non-empty string or number, a path leads out of the pictures, a caption is no text or
            empty, a split is unknown.
    """
    name, image, caption = fields
    if isinstance(record_id, bool) or not isinstance(record_id, (str, int)) or not str(record_id).strip():
        raise DataError(f"{origin}: field `{name}` must be a non-empty string or a number, got {record_id!r}")
    texts = []
    for text in captions:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{origin}: field `{caption}` must be a text that is not empty, got {text!r}")
        check_text(text, f"{origin}: field `{caption}`")
        texts.append(text.strip())
    if not texts:
        raise DataError(f"{origin}: no caption in field `{caption}`")
    if split is not None and split not in SPLITS:
        raise DataError(f"{origin}: field `split` is {split!r}; {nearest(str(split), SPLITS)}")
    for field, value in ((name, record_id), ("label", label), ("group", group), *((image, one) for one in places),
                         *((caption, one) for one in further)):  # fmt: skip
        check_text(str(value), f"{origin}: field `{field}`")
    return Item(
        str(record_id).strip(),
        tuple(inside(place, origin, image) for place in places),
        tuple(texts),
        origin,
        _word(label),
        None if split is None else SPLITS[str(split)],
        _word(group),
        further=tuple(text.strip() for text in further),
        content=content,
    )


def _word(value: object) -> str | None:
    return None if value is None else str(value).strip() or None


def inside(path: object, origin: str, field: str) -> str:
    """A path below a folder, with ``/`` between its parts.

    Raises:
        DataError: it is no path, or leads out of the folder.

    >>> inside("00453/./004539375.jpg", "a.json: record 0", "image")
    '00453/004539375.jpg'
    """
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise DataError(f"{origin}: field `{field}` must be the path of a picture, got {path!r}")
    parts = [part for part in path.strip().replace("\\", "/").split("/") if part != "."]
    if not parts:
        raise DataError(f"{origin}: field `{field}` must be the path of a picture, got {path!r}")
    if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
        raise DataError(f"{origin}: field `{field}` must stay inside the folder of pictures, got {path!r}")
    return "/".join(part for part in parts if part)


def member(record: object, field: str, origin: str) -> object:
    """A field of a record.

    Raises:
        DataError: the record is no object, or has no such field.
    """
    if not isinstance(record, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(record).__name__}")
    if field not in record:
        raise DataError(f"{origin}: no field `{field}`; {nearest(field, map(str, record))}")
    return record[field]


def each(entries: Iterable[tuple[str, object]], parse: Callable[[object, str], Item]) -> Iterator[Item | DataError]:
    """What ``parse`` makes of every record, or the DataError that it raises."""
    for origin, record in entries:
        found: Item | DataError
        try:
            if isinstance(record, DataError):
                raise record
            found = parse(record, origin)
        except DataError as error:
            found = error
        yield found


def beside(files: Sequence[Path], *names: str) -> list[Path]:
    """``names`` as seen from the folder of the first file, for ``Layout.images``."""
    return [files[0].parent / name for name in names]
