"""NWPU-Captions: satellite pictures of 45 classes with five sentences each.

``dataset_nwpu.json`` is ``{"airplane": [{"filename": "airplane_001.jpg", "split": "train", "raw": ..., "raw_1": ...,
..., "raw_4": ...}, ...], ...}``; ``NWPU_images.tar.gz`` unpacks to ``NWPU_images/airplane/airplane_001.jpg``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedcmp.data.json_stream import elements
from fedcmp.data.layouts.base import Item, Layout, Options, beside, each, item, member
from fedcmp.errors import DataError

CAPTIONS = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The pictures of the file; label: their class.

    Raises:
        DataError: the file is no JSON, or an array.
    """
    for element in elements(path):
        if element.key is None:
            raise DataError(f"{path}: expected an object with a list for each class, as in dataset_nwpu.json")
        yield from each([(f"{path}: {element.key}[{element.number}]", element.value)], _parser(element.key))


def _parser(label: str) -> Callable[[object, str], Item]:
    def parse(record: object, origin: str) -> Item:
        name = member(record, "filename", origin)
        first = member(record, "raw", origin)
        others = [record[key] for key in CAPTIONS[1:] if isinstance(record, dict) and key in record]
        return item(
            name,
            [f"{label}/{name}", name],
            [first, *others],
            origin,
            fields=("filename", "filename", "raw"),
            label=label,
            split=member(record, "split", origin),
        )

    return parse


def images(files: Sequence[Path]) -> list[Path]:
    """What ``NWPU_images.tar.gz`` unpacks to."""
    return beside(files, "NWPU_images", "NWPU_images.zip", "images", "images.zip")


LAYOUT = Layout(read, ("dataset_nwpu.json", "*.json"), False, images)
