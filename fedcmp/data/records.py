"""Samples, and LLaVA-style records read into them, with errors that name file, line and field.

Records have the forms that people have: LLaVA's and ShareGPT's ``conversations``, or OpenAI's ``messages``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.errors import DataError, nearest

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


class Records(NamedTuple):
    """The content of a file."""

    samples: list[Sample]
    left_out: Counter[str]
    """What is not among them: how many of which kind."""


class NotOnePicture(DataError):
    """A record of text alone, or of several pictures."""

    def __init__(self, origin: str, count: int) -> None:
        super().__init__(f"{origin}: field `image` (or `images`) must name one picture, got {count}")
        self.kind = "records with several pictures" if count else "records without a picture"


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


def read_records(path: Path, on_bad: str = "error", domain: str = "default", turns: str = "first") -> Records:
    """The samples of a file of ``read_json``.

    Args:
        path: the file.
        on_bad: ``"error"`` raises at the first bad record; ``"skip"`` leaves bad ones out and counts them.
        domain: the domain of records that name none.
        turns: ``"first"``: of each record the pair with its first answer, and the others are counted; ``"all"``.

    Raises:
        DataError: the file cannot be read, a record is bad, an id is used twice.
    """
    samples: list[Sample] = []
    places: dict[str, str] = {}
    left_out = Counter[str]()
    for origin, record in read_json(path):
        try:
            pairs = parse_pairs(record, origin, domain)
            used = pairs if turns == "all" else pairs[:1]
            for one in used:
                if one.id in places:
                    raise DataError(f"{origin}: id {one.id!r} is used already at {places[one.id]}")
        except DataError as error:
            if on_bad == "error":
                raise
            left_out[error.kind] += 1
            continue
        left_out["answers after the first"] += len(pairs) - len(used)
        places.update((one.id, origin) for one in used)
        samples += used
    return Records(samples, +left_out)


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
    key = check_id(id_of(record, origin), origin)
    image = str(picture_of(record, origin))
    inside(image, origin)
    answers = [text.strip() if isinstance(text, str) else "" for text in answers_of(record, origin)]
    if not answers[0]:
        raise DataError(f"{origin}: field `conversations`: the caption is empty, or no text")
    named = record.get("domain", domain)
    if not isinstance(named, str) or not named:
        raise DataError(f"{origin}: field `domain` must be a non-empty string, got {named!r}")
    captions = record.get("captions") or []
    if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise DataError(f"{origin}: field `captions` must be a list of texts, none empty, got {captions!r}")
    label, client = (None if record.get(name) is None else str(record[name]) for name in ("label", "client"))
    check_texts([key, image, *answers, named, label or "", client or "", *captions], origin)
    first = Sample(
        key,
        image,
        answers[0],
        named,
        label,
        origin,
        captions=tuple(text.strip() for text in captions),
        client=client,
        group=key if len(answers) > 1 else None,
    )
    further = enumerate(answers[1:], start=2)
    return [first, *(replace(first, id=f"{key}#{number}", caption=text, captions=()) for number, text in further)]


def picture_of(record: Mapping[str, Any], origin: str) -> object:
    """What names the one picture: field ``image`` or ``images``, itself or a list of one, else a part of a message.

    Raises:
        DataError: there is not one, or it is an address.
    """
    found = record.get("image") or record.get("images")
    if not found:
        contents = [turn.get("content", turn.get("value")) for turn in _turns(record, origin)]
        parts = [part for parts in contents if isinstance(parts, list) for part in parts if isinstance(part, dict)]
        found = [part.get(part["type"]) or part for part in parts if part.get("type") in ("image", "image_url")]
    named = found if isinstance(found, list) else [found]
    names = [one.get("path") or one.get("url") if isinstance(one, dict) else one for one in named]
    names = [name for name in names if name is not None]
    if len(names) != 1:
        raise NotOnePicture(origin, len(names))
    if not isinstance(names[0], str) or "://" in names[0] or names[0].startswith("data:"):
        raise DataError(f"{origin}: field `image` must be the path of a picture, got {str(names[0])[:40]!r}")
    return names[0]


def answers_of(record: Mapping[str, Any], origin: str) -> list[Any]:
    """The answers of a conversation: the first, whatever it is, and those after it that are texts and not empty.

    Raises:
        DataError: the field of the turns is missing or wrong, or there is no answer.
    """
    answered = [turn for turn in _turns(record, origin) if turn.get("from", turn.get("role")) in ("gpt", "assistant")]
    answers = [_text(turn.get("value", turn.get("content"))) for turn in answered]
    if not answers:
        raise DataError(f'{origin}: field `conversations` has no turn with "from": "gpt" or "role": "assistant"')
    return [answers[0], *(text for text in answers[1:] if isinstance(text, str) and text.strip())]


def id_of(record: Mapping[str, Any], origin: str) -> object:
    """Field ``id``; messages mostly have none, and are called by their file and place in it."""
    if "id" not in record and ("messages" in record or "images" in record):
        return origin.rpartition("/")[2].replace(": record ", ":")
    return record.get("id")


def _turns(record: Mapping[str, Any], origin: str) -> list[dict[str, Any]]:
    turns = next((record[key] for key in TURNS if key in record), None)
    if turns is None:
        raise DataError(f"{origin}: no field `conversations` or `messages`; {nearest('conversations', record)}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{origin}: field `conversations` must be a list of turns")
    return turns


def _text(content: object) -> object:
    """The parts of a text as one; anything else unchanged."""
    if not isinstance(content, list):
        return content
    return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict)).strip()


def check_id(value: object, origin: str, field: str = "id") -> str:
    """An id as a text: a non-empty string, or a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{origin}: field `{field}` must be a non-empty string or a number, got {value!r}")
    return str(value)


def check_texts(texts: Iterable[str], origin: str) -> None:
    """Texts must be Unicode: JSON can spell half of a character, which no file can have."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{origin}: a text is not valid Unicode: {error}") from error


def inside(path: object, origin: str, field: str = "image") -> str:
    """A path below a folder, with ``/`` between its parts.

    Raises:
        DataError: it is no path, or leads out of the folder.

    >>> inside("00453/./004539375.jpg", "a.json: record 0")
    '00453/004539375.jpg'
    """
    parts = [part for part in str(path).strip().replace("\\", "/").split("/") if part != "."]
    if not isinstance(path, str) or not any(parts) or "\0" in path:
        raise DataError(f"{origin}: field `{field}` must be the path of a picture, got {path!r}")
    if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
        raise DataError(f"{origin}: field `{field}` must stay inside the folder of pictures, got {path!r}")
    return "/".join(part for part in parts if part)
