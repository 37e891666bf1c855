"""Pictures of a folder or a zip: they stay in the zip, and nothing outside the folder is read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from fedcmp.errors import DataError

LARGEST_FILE = 256 * 2**20
"""Bytes of a picture's file; a small zip can claim to hold terabytes."""


class ImageStore:
    """Pictures of one folder or one zip.

    Args:
        path: a folder, which may be a link itself, or a ``.zip``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise DataError(f"no pictures at {path}; expected a folder or a zip")
        self._zip: zipfile.ZipFile | None = None
        self._process = 0
        self._root = os.path.realpath(path)
        self._folders: dict[str, str] = {}
        self.top = os.path.basename(self._root)
        """The name of the folder, or of the one in which all of the zip lies."""
        if not path.is_dir():
            tops = {name.split("/")[0] for name in self._archive().NameToInfo} - {"__MACOSX"}
            self.top = min(tops) if len(tops) == 1 else path.stem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def close(self) -> None:
        """Closes the zip; the next read opens it again."""
        if self._zip is not None:
            self._zip.close()
        self._zip = None

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except Exception as error:  # zipfile raises many kinds for corrupted directories
                raise DataError(f"{self.path} cannot be read as a zip: {error}") from error
        elif self._process != os.getpid():  # a fork shares the place in the file: open it anew
            assert self._zip.fp is not None, "close() forgets the zip"
            self._zip.fp.close()
            self._zip.fp = self.path.open("rb")
        self._process = os.getpid()
        return self._zip

    def has(self, name: str) -> bool:
        """Whether there is a file of that name; one that a link leads out of the folder to is not there.

        One look at a file, and one at each folder: a data set may have millions.
        """
        if not self.path.is_dir():
            return name in self._archive().NameToInfo and not name.endswith("/")
        folder, file = os.path.split(name)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(os.path.join(self._root, folder))
        real = os.path.join(self._folders[folder], file)
        real = os.path.realpath(real) if os.path.islink(real) else real
        return os.path.isfile(real) and real.startswith(os.path.join(self._root, ""))

    def find(self, place: str) -> str | None:
        """The name of the picture at a place: itself, below the folder that all of a zip lies in, or without a first
        part that is the name of this folder; None: it is not there."""
        first, _, rest = place.partition("/")
        for name in (place, f"{self.top}/{place}", rest if first == self.top else ""):
            if name and self.has(name):
                return name
        return None

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
        size, _ = self.mark(name, origin)
        if size > LARGEST_FILE:
            raise DataError(f"{origin}: picture {name} in {self.path} has {size:,} bytes, more than {LARGEST_FILE:,}")
        try:
            return (self.path / name).read_bytes() if self.path.is_dir() else self._archive().read(name)
        except Exception as error:  # encrypted, unknown packing, corrupted: zipfile has a kind for each
            raise DataError(f"{origin}: cannot read picture {name} in {self.path}: {error}") from error
