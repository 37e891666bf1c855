"""Pictures of any kind as RGB: what cannot be read rightly is refused by name."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedcmp.data.records import Sample
from fedcmp.data.settings import DataConfig
from fedcmp.errors import DataError

MAX_PIXELS = DataConfig.max_pixels
"""Pixels of a picture that are decoded by default. A JPEG that has more is decoded at a half, a quarter or an eighth of
its sides, whatever the setting: what is seen of a file does not depend on settings."""
MAX_ASPECT = 200
"""The longer side of a picture over the shorter, which image processors scale to some hundred pixels."""
SCALED = ("PNG", "PPM")
"""Formats that Pillow reads as integers of 32 bit, scaled to 16: PNG before Pillow 11, and PGM."""
BITS, PHOTOMETRIC, SAMPLE_FORMAT = TAGS = 258, 262, 339
"""Tags of a TIFF."""
Picture = Image.Image | str | Path
"""A picture in memory, or the path of its file."""
_UNLIMITED = threading.Lock()


def open_picture(content: bytes) -> Image.Image:
    """The one picture of a file, not decoded yet; of an animation the first frame.

    Raises:
        ValueError: it is DICOM, a TIFF of several pages, or of numbers that ``check_mode`` refuses.
        Exception: Pillow raises many kinds for corrupted files.
    """
    if content[128:132] == b"DICM":
        raise ValueError("it is DICOM; export it as PNG or JPEG, with the window that is to be shown")
    with _UNLIMITED:  # Pillow's own limit may be below data.max_pixels, which is looked at before decoding
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(io.BytesIO(content))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1:
        raise ValueError("it has several pages; save one page as a file of its own")
    check_mode(picture)
    return picture


def check_mode(picture: Image.Image) -> None:
    """It must be known which value of a pixel is white.

    Raises:
        ValueError: pixels are signed, of 12 or 32 bit, or floats, or 0 is white and they have 16 bit.
    """
    wide = picture.mode == "F" or (picture.mode == "I" and picture.format not in SCALED)
    if picture.format == "TIFF" and not wide:
        tags = {
            number: np.ravel(value)[0] for number, value in getattr(picture, "tag_v2", {}).items() if number in TAGS
        }
        shades = picture.mode.startswith("I") and (tags.get(BITS), tags.get(PHOTOMETRIC)) != (16, 1)
        wide = shades or tags.get(SAMPLE_FORMAT) == 2
    if wide:
        raise ValueError("its pixels are floats, signed or not of 8 or 16 bit; export it with 8 bit a channel")


def check_size(picture: Image.Image, max_pixels: int) -> None:
    """A picture must be of a size that can be decoded, and scaled by its shorter side; a large JPEG is made smaller.

    Args:
        picture: not decoded yet.
        max_pixels: the most that may be decoded.

    Raises:
        ValueError: it has more pixels, or sides that differ by more than MAX_ASPECT.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS and picture.format == "JPEG" and "progressive" not in picture.info:
        part = next((part for part in (2, 4) if width * height <= part**2 * MAX_PIXELS), 8)
        picture.draft(picture.mode, (width // part, height // part))  # a progressive one would be in memory whole
    too_many = picture.width * picture.height > max_pixels
    if too_many or max(picture.size) > MAX_ASPECT * min(picture.size):
        limit = f"data.max_pixels={max_pixels:,} (--max-pixels)" if too_many else f"a ratio of {MAX_ASPECT} to 1"
        raise ValueError(f"its sides, {width:,} x {height:,} pixels, are beyond {limit}")


def to_rgb(picture: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of any mode with 8 or 16 bit a channel as RGB: 16 bit are divided by 257; transparent is white.

    Raises:
        ValueError: see ``check_size`` and ``check_mode``.
    """
    check_size(picture, max_pixels)
    check_mode(picture)
    if picture.mode.startswith("I"):  # where Pillow alone would cut what is above 255
        values = np.asarray(picture).astype(np.int32)  # Pillow before 13 cuts I;16N on its way to I
        picture = Image.fromarray(((values * 255 + 65535 // 2) // 65535).astype(np.uint8))
    picture.load()  # a GIF and others say only then whether something is transparent
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        picture = Image.new("RGB", clear.size, "white")
        picture.paste(clear, mask=clear)
    return picture.convert("RGB")


def why(error: Exception) -> str:
    """What Pillow says, without the address of an object in memory."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)


def decode(content: bytes, sample: Sample, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB picture of at most ``max_pixels`` from the bytes of a file."""
    try:
        return to_rgb(open_picture(content), max_pixels)
    except Exception as error:  # Pillow raises many kinds for corrupted files
        raise DataError(f"{sample.origin}: picture {sample.image} cannot be decoded: {why(error)}") from error


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
    """A picture that belongs to no data set, as training would see it, RGB.

    Args:
        picture: in memory, or its file.
        place: what messages call one in memory: ``pictures[place]``.
        max_pixels: a larger one is refused.

    Raises:
        DataError: it cannot be read, or training would refuse it.
    """
    try:
        opened = picture if isinstance(picture, Image.Image) else open_picture(Path(picture).read_bytes())
        return to_rgb(opened, max_pixels)
    except Exception as error:  # Pillow raises many kinds for corrupted files
        name = f"pictures[{place}]" if isinstance(picture, Image.Image) else f"picture {picture}"
        raise DataError(f"{name} cannot be used: {why(error)}") from error
