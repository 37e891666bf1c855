"""Reading what runs write. A missing file is empty; a file that cannot be read is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.plain_yaml import parse_yaml, resolve


def read_text(path: Path) -> str:
    """The file's text; empty where there is no file.

    Raises:
        RunFolderError: it is there and cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file.

    Raises:
        RunFolderError: it is no JSON object.
    """
    text = read_text(path)
    try:
        content = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise RunFolderError(f"{path} is corrupted: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is corrupted: expected an object, got {type(content).__name__}")
    return content


def read_objects(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line. A last line without its end is left out: its run may be writing it.

    Raises:
        RunFolderError: a line is no JSON object.
    """
    text, found = read_text(path), []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError(f"expected an object, got {type(content).__name__}")
        except ValueError as error:
            if number == len(lines):
                break
            raise RunFolderError(f"{path}, line {number} is corrupted: {error}") from error
        found.append(content)
    return found


def read_settings(text: str, path: Path) -> dict[str, Any]:
    """The config of a run as plain containers.

    Raises:
        RunFolderError: it is no YAML mapping.
    """
    try:
        content = resolve(parse_yaml(text, str(path)))
    except ConfigError as error:
        raise RunFolderError(str(error)) from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is corrupted: expected keys and values, got {type(content).__name__}")
    return content
