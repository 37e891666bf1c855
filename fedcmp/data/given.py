"""Pairs of a script: any object with a length and (picture, caption) items is a data set."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from PIL import Image

from fedcmp.data.images import MAX_PIXELS, check_mode, to_rgb, why
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.errors import DataError

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""Pillow's, of corrupted files."""


class Pairs(Protocol):
    """A data set of n pairs, as torch has them: items 0 to n - 1 are a picture and its caption each.

    An item is asked for more than once, and must be the same each time.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, str]: ...


class GivenSource(Source):
    """Data sets by split and name; a sample's domain is the name of its data set.

    Args:
        sets: by split (``"train"``, ``"val"``, ``"test"``) and name.
        max_pixels: larger pictures are refused.

    Raises:
        DataError: a data set is empty, or an item is no picture with a caption, or one that ``check_mode`` refuses,
            or its picture cannot be opened.

    >>> source = GivenSource({"train": {"mine": [(Image.new("L", (8, 8)), "a grey square")]}})
    >>> source.samples("train")[0].caption, source.image(source.samples("train")[0]).mode
    ('a grey square', 'RGB')
    """

    def __init__(self, sets: Mapping[str, Mapping[str, Pairs]], max_pixels: int = MAX_PIXELS) -> None:
        self._sets, self._max_pixels, self.left_out = sets, max_pixels, Counter[str]()
        self._samples = {
            split: [sample for name, pairs in named.items() for sample in _read(split, name, pairs)]
            for split, named in sets.items()
        }

    def samples(self, split: str) -> list[Sample]:
        """One data set after the other."""
        return self._samples.get(split, [])

    def owned(self, split: str) -> tuple[tuple[int, ...], ...]:
        """The positions of each data set's samples among those of the split."""
        positions = iter(range(len(self.samples(split))))
        return tuple(tuple(itertools.islice(positions, len(pairs))) for pairs in self._sets[split].values())

    def digest(self, sample: Sample) -> str:
        """Of the decoded picture: there are no bytes of a file."""
        picture = self.image(sample)
        return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()

    def place(self, sample: Sample) -> str:
        return sample.id

    def image(self, sample: Sample) -> Image.Image:
        """The picture, RGB.

        Raises:
            DataError: it is corrupted, or refused.
        """
        split, index = sample.image.split("/")
        try:
            return to_rgb(self._sets[split][sample.domain][int(index)][0], self._max_pixels)
        except Exception as error:  # Pillow raises many kinds for corrupted files
            raise DataError(f"{sample.origin}: the picture cannot be used: {why(error)}") from error


def _read(split: str, name: str, pairs: Pairs) -> list[Sample]:
    """Looks at each item once: some open or decode their pictures only when they are asked for."""
    samples = []
    for index in range(len(pairs)):
        origin = f"the {split} data set {name!r}, item {index}"
        try:
            item: object = pairs[index]
            match item:
                case (Image.Image() as picture, str() as caption) if caption.strip():
                    check_mode(picture)
                case (picture, caption):
                    kinds = f"({type(picture).__name__}, {type(caption).__name__})"
                    raise ValueError(f"expected (PIL picture, text that is not empty), got {kinds}")
                case _:
                    raise ValueError(f"expected (PIL picture, text), got {type(item).__name__}")
        except PICTURE_ERRORS as error:
            path = getattr(error, "filename", None)
            raise DataError(f"{origin}: {why(error)}{f': {path}' if path else ''}") from error
        samples.append(Sample(f"{split}/{name}/{index}", f"{split}/{index}", caption.strip(), name, origin=origin))
    if not samples:
        raise DataError(f"the {split} data set {name!r} is empty")
    return samples
