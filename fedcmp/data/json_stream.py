"""JSON read value by value: a file of any size takes the memory of one record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from fedcmp.errors import DataError

CHUNK = 1 << 20
LARGEST = 1 << 26
"""Characters of the longest single record; bytes, where each has a line."""
EXPECTED = "expected a JSON array of records, or one record a line"
_DECODER = json.JSONDecoder()


class Element(NamedTuple):
    """One element of an array of the file."""

    key: str | None
    """Which member of the file's object holds the array; None: the array is the file."""
    number: int
    """Its place in the array, from 0."""
    value: object


def elements(path: Path) -> Iterator[Element]:
    """The elements of the array that the file is, or of every array that is a member of the file's object.

    Members that are no arrays are read and left out.

    Raises:
        DataError: the file is missing, is no JSON, or neither an array nor an object; a record is longer than LARGEST.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        start = text.peek()
        if start == "[":
            yield from _array(text, None)
        elif start == "{":
            yield from _members(text)
        else:
            raise text.error("expected a JSON array or object")
        if text.peek():
            raise text.error("expected nothing after the end of the JSON")


def records(path: Path) -> Iterator[tuple[str, object]]:
    """Each record with its place: of a JSON array, or of JSON lines (an object a line), whatever the file is called.

    A line that is no JSON comes as the DataError that it is.

    Raises:
        DataError: the file is missing, or its array is corrupted, or it is one object.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        start = text.peek()
        if start == "[":
            for element in _array(text, None):
                yield f"{path}: record {element.number}", element.value
            if text.peek():
                raise text.error("expected nothing after the end of the array")
            return
    if start != "{":
        raise DataError(f"{path}: {EXPECTED}")
    began = False
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST), b""), start=1):
            if not line.strip():
                continue
            origin = f"{path}:{number}"
            if len(line) == LARGEST:
                raise DataError(f"{origin}: a record is longer than {LARGEST:,} bytes, or corrupted")
            record: object
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # also UTF-8, and numbers of too many digits
                if not began and _begins_with_a_value(path):
                    raise DataError(f"{origin}: an object of several lines; {EXPECTED}") from error
                record = DataError(f"{origin}: not valid JSON: {error}")
            began = True
            yield origin, record


def _begins_with_a_value(path: Path) -> bool:
    with _opened(path) as file:
        try:
            _Text(path, file).value()
        except DataError:
            return False
    return True


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


class _Text:
    """A window on a file: what was decoded is forgotten, what is needed is read."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._window, self._at, self._line, self._ended = "", 0, 1, False

    def _more(self) -> None:
        self._line += self._window.count("\n", 0, self._at)
        try:
            # as much again as is held: a long record is tried a few times only
            fresh = self._file.read(max(CHUNK, len(self._window) - self._at))
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}: not UTF-8: {error}") from error
        self._window, self._at = self._window[self._at :] + fresh, 0
        self._ended = not fresh

    def error(self, what: str) -> DataError:
        """An error that names file and line."""
        line = self._line + self._window.count("\n", 0, self._at)
        return DataError(f"{self._path}:{line}: not valid JSON: {what}")

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, expected: str) -> None:
        """Passes one character."""
        found = self.peek()
        if found != expected:
            raise self.error(f"expected {expected!r}, got {found!r}" if found else f"it ends where {expected!r} is due")
        self._at += 1

    def value(self) -> object:
        """Decodes one value."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._window, self._at)
            except (ValueError, RecursionError) as error:
                if self._ended or not isinstance(error, json.JSONDecodeError):  # too deep, or a number of many digits
                    raise self.error(str(error)) from error
            else:
                if end + 3 <= len(self._window) or self._ended:  # 1 may go on as 1e-8 behind the window
                    self._at = end
                    return found
            if len(self._window) - self._at > LARGEST:
                raise self.error(f"a record is longer than {LARGEST:,} characters, or corrupted")
            self._more()


def _array(text: _Text, key: str | None) -> Iterator[Element]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    number = 0
    while True:
        yield Element(key, number, text.value())
        number += 1
        if text.peek() == "]":
            text.take("]")
            return
        text.take(",")


def _members(text: _Text) -> Iterator[Element]:
    text.take("{")
    while text.peek() != "}":
        if text.peek() != '"':
            raise text.error("expected the name of a member")
        key = str(text.value())
        text.take(":")
        if text.peek() == "[":
            yield from _array(text, key)
        else:
            text.value()
        if text.peek() != "}":
            text.take(",")
    text.take("}")
