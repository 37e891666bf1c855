"""Samples, and the records of conversations that they are read from.

Records have LLaVA's and ShareGPT's ``conversations``, or OpenAI's ``messages``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcmp.errors import DataError

TURNS = ("conversations", "conversatons", "messages")
"""Names of the field with the turns; LLaVA-Med really spells it so."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image-caption pair; the picture itself stays in its source."""

    id: str
    image: str
    """Path of the picture inside the source."""
    caption: str
    domain: str
    label: str | None = None
    """What the picture shows, where the data say."""
    origin: str = ""
    """``file:line`` of the record, for messages."""
    topic: str | None = None
    """Its topic in all domains; None: its label within its domain is its topic."""
    captions: tuple[str, ...] = ()
    """All captions of the picture, where the record lists them; ``caption`` alone is trained on."""
    client: str | None = None
    """The client that owns it, where the record says."""
    group: str | None = None
    """Its conversation, which is held out as one and belongs to one client; None: it is alone."""


def load_json(path: Path) -> Any:
    """The value of a JSON file. It is in memory whole: LLaVA's file of 181 MB takes 1 GB until it is parsed.

    Raises:
        DataError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise DataError(f"{path}: not valid JSON: {error}") from error


def read_json(path: Path) -> Iterator[tuple[str, object]]:
    """Each record with its place: of a JSON array, or of JSON lines (an object a line), whatever the suffix.

    A line that is no JSON comes as the DataError that it is.

    Raises:
        DataError: the file cannot be read, or is neither.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            if start == b"[":
                for number, record in enumerate(load_json(path)):
                    yield f"{path}: record {number}", record
                return
            if start != b"{":
                raise DataError(f"{path}: expected a JSON array of records, or one record a line")
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"{path}:{number}", DataError(f"{path}:{number}: not valid JSON: {error}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def parse_pairs(record: object, origin: str, domain: str = "default") -> list[Sample]:
    """The pairs of one record: its picture with each of its answers.

    Args:
        record: the decoded JSON object, or why there is none.
        origin: its file and line, for messages.
        domain: the domain of records that name none.

    Raises:
        DataError: a field is missing or wrong.
    """
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(record).__name__}")
    name = record.get("id")
    if "id" not in record and ("messages" in record or "images" in record):  # these mostly have none: file and place
        name = origin.rpartition("/")[2].replace(": record ", ":")
    key = check_id(name, origin)
    turns = next((record[key] for key in TURNS if key in record), None)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{origin}: field `conversations` (or `messages`) must be a list of turns")
    image = _picture(record, turns, origin)
    answers = [_text(turn) for turn in turns if turn.get("from", turn.get("role")) in ("gpt", "assistant")]
    if not answers or not answers[0]:
        raise DataError(f"{origin}: field `conversations` has no answer, or the first one is empty or no text")
    named = record.get("domain", domain)
    if not isinstance(named, str) or not named:
        raise DataError(f"{origin}: field `domain` must be a non-empty string, got {named!r}")
    captions = record.get("captions") or []
    if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise DataError(f"{origin}: field `captions` must be a list of texts, none empty, got {captions!r}")
    label, client = (None if record.get(name) is None else str(record[name]) for name in ("label", "client"))
    check_texts([key, image, *answers, named, label or "", client or "", *captions], origin)
    further = [text for text in answers[1:] if text]
    first = Sample(
        key,
        image,
        answers[0],
        named,
        label,
        origin,
        captions=tuple(text.strip() for text in captions),
        client=client,
        group=key if further else None,
    )
    others = (replace(first, id=f"{key}#{n}", caption=text, captions=()) for n, text in enumerate(further, start=2))
    return [first, *others]


def _picture(record: Mapping[str, Any], turns: Sequence[dict[str, Any]], origin: str) -> str:
    """The path of the one picture: in field ``image`` or ``images``, itself or in a list, else a part of a message."""
    found = record.get("image") or record.get("images")
    if not found:
        contents = [content for turn in turns if isinstance(content := turn.get("content", turn.get("value")), list)]
        parts = [part for content in contents for part in content if isinstance(part, dict)]
        found = [part.get(part["type"]) or part for part in parts if part.get("type") in ("image", "image_url")]
    named = found if isinstance(found, list) else [found]
    names = [one.get("path") or one.get("url") if isinstance(one, dict) else one for one in named]
    names = [name for name in names if name is not None]
    if len(names) != 1:
        kind = "records with several pictures" if names else "records without a picture"
        raise DataError(f"{origin}: field `image` (or `images`) must name one picture, got {len(names)}", kind)
    inside(names[0], origin)
    return str(names[0])


def _text(turn: Mapping[str, Any]) -> str:
    """What a turn says, its parts as one text; empty where it is no text."""
    said = turn.get("value", turn.get("content"))
    if isinstance(said, list):
        said = " ".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    return said.strip() if isinstance(said, str) else ""


def check_id(value: object, origin: str) -> str:
    """An id as a text: a non-empty string, or a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{origin}: field `id` must be a non-empty string or a number, got {value!r}")
    return str(value)


def check_texts(texts: Iterable[str], origin: str) -> None:
    """Texts must be Unicode: JSON can spell half of a character, which no file can have."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{origin}: a text is not valid Unicode: {error}") from error


def inside(path: object, origin: str) -> str:
    """A path below the folder of pictures, with ``/`` between its parts.

    Raises:
        DataError: it is no path, is an address, or leads out of the folder.

    >>> inside("00453/./004539375.jpg", "a.json: record 0")
    '00453/004539375.jpg'
    """
    parts = [part for part in str(path).strip().replace("\\", "/").split("/") if part != "."]
    outside = parts and (parts[0] == "" or parts[0].endswith(":") or parts[0].startswith("data:") or ".." in parts)
    if not isinstance(path, str) or not any(parts) or "\0" in path or outside:
        raise DataError(f"{origin}: field `image` must be a path inside the folder of pictures, got {str(path)[:60]!r}")
    return "/".join(part for part in parts if part)
