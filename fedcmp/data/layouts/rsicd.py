"""RSICD: satellite pictures with five sentences each, in Karpathy's form.

``dataset_rsicd.json`` is ``{"images": [{"filename": "airport_1.jpg", "split": "train", "sentences": [{"raw": ...},
...]}], "dataset": "rsicd"}``. The class of a picture stands in ``txtclasses_rsicd/<class>.txt`` (a file name a line),
and for some in the file name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcmp.data.json_stream import elements
from fedcmp.data.layouts.base import Item, Layout, Options, beside, each, item, member
from fedcmp.errors import DataError

CLASSES = "txtclasses_rsicd"


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The pictures of the file, labelled by class where it is known.

    Raises:
        DataError: the file is no JSON, or has no ``images``.
    """
    classes = _classes(path.parent / CLASSES)

    def parse(record: object, origin: str) -> Item:
        name, sentences = member(record, "filename", origin), member(record, "sentences", origin)
        if not isinstance(sentences, list):
            raise DataError(f"{origin}: field `sentences` must be a list, got {sentences!r}")
        return item(
            name,
            [name],
            [member(sentence, "raw", origin) for sentence in sentences],
            origin,
            fields=("filename", "filename", "sentences.raw"),
            label=classes.get(str(name), _class_of(str(name))),
            split=member(record, "split", origin),
        )

    found = False

    def entries() -> Iterator[tuple[str, object]]:
        nonlocal found
        for element in elements(path):
            if element.key == "images":
                found = True
                yield f"{path}: images[{element.number}]", element.value

    yield from each(entries(), parse)
    if not found:
        raise DataError(f"{path}: no pictures in member `images`; expected the form of dataset_rsicd.json")


def _class_of(name: str) -> str | None:
    """``airport_1.jpg`` is an airport; others have numbers only."""
    match = re.match(r"([a-z]+)_\d+\.", name.lower())
    return match.group(1) if match else None


def _classes(folder: Path) -> dict[str, str]:
    """File name -> class; empty where the folder is not there."""
    found = {}
    for file in sorted(folder.glob("*.txt")):
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            if line.strip():
                found[line.strip()] = file.stem.lower()
    return found


def images(files: Sequence[Path]) -> list[Path]:
    """``RSICD_images.zip``, or what it unpacks to."""
    return beside(files, "RSICD_images", "RSICD_images.zip", "images", "images.zip")


LAYOUT = Layout(read, ("dataset_rsicd.json", "*.json"), False, images)
