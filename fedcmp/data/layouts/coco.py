"""COCO captions: ``captions_train2017.json`` and the pictures of ``train2017``; 2014 likewise.

The file is ``{"images": [{"id", "file_name", ...}], "annotations": [{"image_id", "id", "caption"}], ...}``, with about
five annotations a picture. The captions of one file are held in memory, pictures are not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcmp.data.json_stream import elements
from fedcmp.data.layouts.base import Item, Layout, Options, each, item, member
from fedcmp.errors import DataError


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The pictures of one file in its order, each with all its captions.

    Raises:
        DataError: the file is no JSON, or lacks ``images`` or ``annotations``; an annotation is bad.
    """
    pictures: list[tuple[str, object]] = []
    captions: dict[str, list[object]] = defaultdict(list)
    bad: list[DataError] = []
    for element in elements(path):
        origin = f"{path}: {element.key}[{element.number}]"
        if element.key == "images":
            pictures.append((origin, element.value))
        elif element.key == "annotations":
            try:
                number, text = (member(element.value, name, origin) for name in ("image_id", "caption"))
                captions[str(number)].append(text)
            except DataError as error:
                bad.append(error)
    for member_name, found in (("images", pictures), ("annotations", captions)):
        if not found and not bad:
            raise DataError(f"{path}: nothing in member `{member_name}`; expected the form of captions_train2017.json")
    yield from bad
    folder = _folder(path)

    def parse(record: object, origin: str) -> Item:
        name, number = member(record, "file_name", origin), member(record, "id", origin)
        own = captions.get(str(number), [])
        if not own:
            raise DataError(f"{origin}: no annotation has the `image_id` {number!r} of this picture")
        return item(
            number,
            [name, f"{folder}/{name}"] if folder else [name],
            own,
            origin,
            fields=("id", "file_name", "annotations.caption"),
            split="val" if folder and folder.startswith("val") else None,
        )

    yield from each(pictures, parse)


def _folder(path: Path) -> str | None:
    """``captions_train2017.json`` -> ``train2017``."""
    match = re.search(r"(train|val)\d{4}", path.stem)
    return match.group() if match else None


def images(files: Sequence[Path]) -> list[Path]:
    """The folder or zip named like the file, beside it or beside ``annotations``; for several files, what holds all."""
    homes = [files[0].parent.parent, files[0].parent]
    names = [name for name in map(_folder, files) if name]
    if len(names) == 1 == len(files):
        return [home / f"{part}{names[0]}{end}" for home in homes for part in ("", "images/") for end in ("", ".zip")]
    homes += [home / "images" for home in homes]
    return [home for home in homes if names and all((home / name).is_dir() for name in names)]


LAYOUT = Layout(read, ("captions_*.json", "annotations/captions_*.json"), True, images)
