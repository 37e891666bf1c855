"""Pictures of a folder or a zip; they stay in the zip, and nothing outside the folder is read."""

from __future__ import annotations

import io
import os
import stat
import threading
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedcmp.data.config import DataConfig
from fedcmp.data.records import Sample
from fedcmp.errors import DataError

LARGEST_FILE = 256 * 2**20
"""Bytes of a picture's file; a small zip can claim to hold terabytes."""
MAX_PIXELS = DataConfig.max_pixels
"""Pixels of a picture that are decoded where nothing else is asked for. A JPEG that has more is decoded at a half, a
quarter or an eighth of its sides, whatever the setting: what is seen of a file does not depend on settings."""
MAX_ASPECT = 200
"""The longer side of a picture over the shorter, which image processors scale to some hundred pixels."""
SCALED = ("PNG", "PPM")
"""Formats that Pillow reads as integers of 32 bit, scaled to 16: PNG before Pillow 11, and PGM."""
SUBFILE, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 254, 258, 262, 339
"""Tags of a TIFF."""
_UNLIMITED = threading.Lock()


class ImageStore:
    """Pictures of one folder or one zip; they stay in the zip, and nothing outside the folder is read.

    Args:
        path: a folder, which may be a link itself, or a ``.zip``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise DataError(f"no pictures at {path}; expected a folder or a zip")
        self._zip: zipfile.ZipFile | None = None
        self._file: int | None = None
        self._root = os.path.realpath(path)
        self._within: dict[str, bool] = {}
        self.top = os.path.basename(self._root)
        """The name of the folder, or of the one in which all of the zip lies."""
        if not path.is_dir():
            tops = {name.split("/")[0] for name in self._archive().NameToInfo} - {"__MACOSX"}
            self.top = min(tops) if len(tops) == 1 else path.stem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_file": None}

    def close(self) -> None:
        """Closes the zip; the next read opens it again."""
        if self._zip is not None:
            self._zip.close()
        if self._file is not None:
            os.close(self._file)
        self._zip = self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._file = os.open(self.path, os.O_RDONLY)
                self._zip = zipfile.ZipFile(_Positioned(self._file))
            except Exception as error:  # zipfile raises many kinds for corrupted directories
                raise DataError(f"{self.path} cannot be read as a zip: {error}") from error
        return self._zip

    def names(self, wanted: Sequence[str]) -> set[str]:
        """Those of ``wanted`` that exist; links that lead out of the folder are not among them."""
        if self.path.is_dir():
            return {name for name in wanted if self._holds(name)}
        return set(wanted) & set(self._archive().namelist())

    def why_not(self, wanted: Sequence[str]) -> str:
        """Why none of ``wanted`` is among ``names``, in words."""
        if self.path.is_dir() and any(os.path.lexists(self.path / name) for name in wanted):
            return f"is no file, or a link that leads out of {self.path}; give the folder that it leads to"
        return f"is not in {self.path}{spelt_otherwise(wanted, self.has, self.top)}"

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self._holds(name) if self.path.is_dir() else name in self._archive().NameToInfo and name[-1:] != "/"

    def _holds(self, name: str) -> bool:
        """One look at a file, and one at each folder: a data set may have millions."""
        path = os.path.join(self.path, name)
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):
            return False
        if stat.S_ISLNK(mode):
            return os.path.isfile(path) and self._leads_inside(os.path.realpath(path))
        folder = os.path.dirname(path)
        if folder not in self._within:
            self._within[folder] = self._leads_inside(os.path.realpath(folder))
        return stat.S_ISREG(mode) and self._within[folder]

    def _leads_inside(self, real: str) -> bool:
        return real == self._root or real.startswith(os.path.join(self._root, ""))

    def mark(self, name: str, origin: str) -> tuple[int, int | None]:
        """Bytes of a picture and, in a zip, their CRC-32; the picture is not read."""
        try:
            if self.path.is_dir():
                return (self.path / name).stat().st_size, None
            entry = self._archive().getinfo(name)
        except (KeyError, OSError) as error:
            raise DataError(f"{origin}: cannot find picture {name} in {self.path}: {error}") from error
        return entry.file_size, entry.CRC

    def read(self, name: str, origin: str) -> bytes:
        """The bytes of one picture."""
        size, _ = ImageStore.mark(self, name, origin)
        if size > LARGEST_FILE:
            raise DataError(f"{origin}: picture {name} in {self.path} has {size:,} bytes, more than {LARGEST_FILE:,}")
        try:
            return (self.path / name).read_bytes() if self.path.is_dir() else self._archive().read(name)
        except Exception as error:  # encrypted, unknown packing, corrupted: zipfile has a kind for each
            raise DataError(f"{origin}: cannot read picture {name} in {self.path}: {error}") from error


def spelt_otherwise(wanted: Sequence[str], has: Callable[[str], bool], top: str = "") -> str:
    """The end of a message, where a picture is there under a name that differs a little; empty where none is.

    >>> spelt_otherwise(["a/scan.PNG"], {"a/scan.png"}.__contains__)
    ', but a/scan.png is: capital letters count'
    >>> spelt_otherwise([r"a\\scan.png"], {"all/a/scan.png"}.__contains__, "all")
    ', but all/a/scan.png is: folders are parted by /, all is in all/'
    """
    for name in wanted:
        slashes = name.replace("\\", "/")
        stem, suffix = os.path.splitext(slashes)
        spellings = {slashes: "folders are parted by /" if slashes != name else ""}
        for other in (stem + suffix.lower(), stem + suffix.upper(), slashes.lower()):
            spellings.setdefault(other, "capital letters count")
        for form in ("NFC", "NFD"):
            spellings.setdefault(unicodedata.normalize(form, slashes), f"in Unicode form {form}")
        for spelt, how in spellings.items():
            for place, where in (("", ""), (f"{top}/", f"all is in {top}/"), (None, "in no folder")):
                other = spelt.split("/")[-1] if place is None else place + spelt
                if other != name and has(other):
                    return f", but {other} is: {', '.join(filter(None, (how, where)))}"
    return ""


class _Positioned(io.RawIOBase):
    """An open file with a place of its own in each process: forked ones share the operating system's."""

    def __init__(self, file: int) -> None:
        self._descriptor, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        if start + offset < 0:
            raise OSError(f"no place {start + offset} in a file")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._descriptor, len(buffer), self._place)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def open_picture(content: bytes) -> Image.Image:
    """The one picture of a file, not decoded yet; of an animation the first frame.

    Raises:
        ValueError: it is a TIFF of several pages.
        Exception: Pillow raises many kinds for corrupted files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at where it is decoded
        try:
            picture = Image.open(io.BytesIO(content))
        except Image.DecompressionBombError:  # beyond twice Pillow's own limit, which data.max_pixels may exceed
            with _UNLIMITED:
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    picture = Image.open(io.BytesIO(content))
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
    if picture.format == "TIFF" and _has_pages(picture):
        raise ValueError("it has several pages; save the page or slice that counts as a file of its own")
    return picture


def why(error: Exception) -> str:
    """What Pillow says, without the address of an object in memory."""
    return "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)


def _has_pages(picture: Any) -> bool:
    """Whether a TIFF has more than one page; smaller copies of the same page are none."""
    pages = 0
    for number in range(picture.n_frames):
        picture.seek(number)
        pages += not picture.tag_v2.get(SUBFILE, 0) & 1
        if pages > 1:
            return True
    picture.seek(0)
    return False


def check_mode(picture: Image.Image) -> None:
    """A picture's numbers must be such that it is known which of them is white.

    Raises:
        ValueError: they are signed, or integers of 32 bit, or floats.
    """
    numbers = None
    if picture.mode == "F":
        numbers = "floats"
    elif _tag(picture, SAMPLE_FORMAT) == 2:
        numbers = f"signed integers of {_tag(picture, BITS)} bit"
    elif picture.mode == "I" and picture.format not in SCALED:
        numbers = "integers of 32 bit"
    if numbers:
        raise ValueError(
            f"its pixels are {numbers}, and which value is white is not said; export it with 8 or 16 bit a channel"
        )


def check_size(picture: Image.Image, max_pixels: int) -> None:
    """A picture must be of a size that can be decoded, and scaled by its shorter side; a large JPEG is made smaller.

    Args:
        picture: not decoded yet, or it is too late.
        max_pixels: the most that may be decoded.

    Raises:
        ValueError: it has more pixels, or sides that differ by more than MAX_ASPECT.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS and picture.format == "JPEG" and "progressive" not in picture.info:
        part = next((part for part in (2, 4) if width * height <= part**2 * MAX_PIXELS), 8)
        picture.draft(picture.mode, (width // part, height // part))  # a progressive one would be in memory whole
    if picture.width * picture.height > max_pixels:
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than data.max_pixels={max_pixels:,} (of fedcmp prepare: "
            "--max-pixels); make it smaller, cut it into tiles, or raise the setting if memory allows, 4 bytes a pixel"
        )
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        raise ValueError(
            f"its sides, {width:,} x {height:,} pixels, differ by more than a factor of {MAX_ASPECT}, and scaled by "
            "the shorter it would not fit memory; crop it, or cut it into tiles"
        )


def to_rgb(picture: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of any mode with 8, 12 or 16 bit a channel as RGB: 16 bit are divided by 257, the 12 of a TIFF by
    4095 / 255; what is transparent is put on white.

    Raises:
        ValueError: see ``check_size`` and ``check_mode``.
    """
    check_size(picture, max_pixels)
    check_mode(picture)
    if picture.mode.startswith("I"):  # where Pillow alone would cut what is above 255
        top = 2 ** _tag(picture, BITS, 16) - 1
        inverted = _tag(picture, PHOTOMETRIC) == 0  # Pillow sees to that with 8 bit only
        values = np.asarray(picture).astype(np.int32)  # Pillow before 13 cuts I;16N on its way to I
        values = top - values if inverted else values
        picture = Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))
    picture.load()  # a GIF and others say only then whether something is transparent
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        picture = Image.new("RGB", clear.size, "white")
        picture.paste(clear, mask=clear)
    return picture.convert("RGB")


def _tag(picture: Image.Image, number: int, default: int | None = None) -> Any:
    """A tag of a TIFF, for its first channel; ``default`` for all other pictures."""
    found = getattr(picture, "tag_v2", {}).get(number, default) if picture.format == "TIFF" else default
    return found[0] if isinstance(found, tuple) else found


def decode(content: bytes, sample: Sample, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB picture of at most ``max_pixels`` from the bytes of a file."""
    try:
        return to_rgb(open_picture(content), max_pixels)
    except Exception as error:  # Pillow raises many kinds for corrupted files
        raise DataError(f"{sample.origin}: picture {sample.image} cannot be decoded: {why(error)}") from error
