"""Pictures that belong to no data set: in memory, in files and in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fedcmp.data.images import MAX_PIXELS, decode, to_rgb, why
from fedcmp.data.records import Sample
from fedcmp.errors import DataError

Picture = Image.Image | str | Path
"""A picture in memory, or the path of its file."""


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given; of a folder, all files below it with a suffix that Pillow reads, sorted.

    Raises:
        DataError: a folder has none.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    for path in paths:
        below = [path]
        if path.is_dir():
            below = sorted(one for one in path.rglob("*") if one.suffix.lower() in suffixes and one.is_file())
        if not below:
            raise DataError(f"the folder {path} has no picture")
        found += below
    return found


def read_picture(picture: Picture, place: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as training sees it, RGB.

    Args:
        picture: in memory, or its file.
        place: what messages call one in memory: ``pictures[place]``.
        max_pixels: a larger one is refused.

    Raises:
        DataError: it cannot be read, or training would refuse it.
    """
    if not isinstance(picture, Image.Image):
        path = Path(picture)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"picture {path} cannot be read: {error.strerror}") from error
        return decode(content, Sample(str(path), path.name, "", "", origin=str(path)), max_pixels)
    try:
        return to_rgb(picture, max_pixels)
    except Exception as error:  # Pillow raises many kinds for corrupted files
        raise DataError(f"pictures[{place}] cannot be used: {why(error)}") from error
