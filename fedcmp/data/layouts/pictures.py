"""The pictures of a set where they lie: found by name, marked by size and CRC-32, read one at a time."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

from fedcmp.data.images import ImageStore, check_mode, open_picture, why
from fedcmp.errors import DataError

Mark = tuple[int, int]
"""Size in bytes and CRC-32: equal for equal pictures, and for others hardly ever."""
DICOM = (
    "DICOM is not read: export the pictures as PNG or JPEG first; which window to show and whether they are anonymous "
    "is for you to decide"
)


class Pictures(ImageStore):
    """Pictures by the names that layouts give them."""

    def find(self, places: Sequence[str], origin: str) -> str:
        """The name of a picture here: the first of ``places`` that exists, as it is, below the folder that all of a zip
        lies in, or without a first part that is the name of this folder.

        Raises:
            DataError: none exists, it is DICOM, or a link leads out of the folder.
        """
        tried = []
        for place in places:
            first, _, rest = place.partition("/")
            tried += [place, f"{self.top}/{place}", *([rest] if first == self.top and rest else [])]
        for name in tried:
            if PurePosixPath(name).suffix.lower() in (".dcm", ".dicom"):
                raise DataError(f"{origin}: {name}: {DICOM}")
            if self.has(name):
                return name
        raise DataError(f"{origin}: picture {places[0]} {self.why_not(tried)}")

    def mark(self, name: str, origin: str) -> Mark:
        """Size and CRC-32. Of a zip they are read from its directory; a file is read, and must be a picture.

        Raises:
            DataError: it cannot be read, is empty, encrypted, or no picture.
        """
        size, checksum = super().mark(name, origin)
        if checksum is None:
            content = self.read(name, origin)
            look(content, name, origin)
            return mark(content)
        if self._archive().getinfo(name).flag_bits & 1:
            raise DataError(f"{origin}: picture {name} in {self.path} is encrypted")
        if not size:
            raise DataError(f"{origin}: picture {name} is empty")
        return size, checksum


def mark(content: bytes) -> Mark:
    """Size and CRC-32 of the bytes of a picture."""
    return len(content), zlib.crc32(content)


def look(content: bytes, name: str, origin: str) -> str:
    """The usual suffix of a picture's format, read from its first bytes; it is not decoded.

    Raises:
        DataError: Pillow does not know the format, it is DICOM, has several pages, or ``check_mode`` refuses it.
    """
    if not content:
        raise DataError(f"{origin}: picture {name} is empty")
    if content[128:132] == b"DICM":
        raise DataError(f"{origin}: {name}: {DICOM}")
    try:
        with open_picture(content) as picture:
            check_mode(picture)
            kind = str(picture.format).lower()
    except Exception as error:  # Pillow raises many kinds for corrupted files
        raise DataError(f"{origin}: {name} is no picture that can be read: {why(error)}") from error
    return {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)


class Pack:
    """A zip that is written picture by picture; the same pictures give the same bytes.

    Args:
        path: the new zip.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "x", zipfile.ZIP_STORED)

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    def add(self, name: str, content: bytes) -> None:
        """Writes a picture, unless one of that name is there."""
        if name not in self._zip.NameToInfo:
            entry = zipfile.ZipInfo(name)  # its date is 1980, whatever the day
            entry.external_attr = 0o644 << 16
            self._zip.writestr(entry, content)
