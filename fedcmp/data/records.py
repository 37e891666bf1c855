"""Samples, and the reading of LLaVA-style records with errors that name file, line and field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedcmp.data.json_stream import records
from fedcmp.errors import DataError


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
    """What topic it belongs to, whatever its domain; None: its label within its domain is its topic."""
    captions: tuple[str, ...] = ()
    """All captions of the picture, where the record lists them; ``caption`` alone is trained on."""
    client: str | None = None
    """Whose it is, where the record says."""


class Records(NamedTuple):
    """What a file held."""

    samples: list[Sample]
    num_skipped: int


def parse_record(record: object, origin: str, domain: str = "default") -> Sample:
    """One LLaVA record: ``id``, ``image``, ``conversations`` (a human turn, then the caption as a gpt turn).

    Args:
        record: the decoded JSON object.
        origin: where it stands, for messages.
        domain: the domain of records that name none.

    Raises:
        DataError: a field is missing or wrong.
    """
    if not isinstance(record, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(record).__name__}")
    key = record.get("id")
    if isinstance(key, bool) or not isinstance(key, (str, int)) or str(key).strip() == "":
        raise DataError(f"{origin}: field `id` must be a non-empty string or a number, got {key!r}")
    image = record.get("image")
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise DataError(f"{origin}: field `image` must be the path of a picture, got {image!r} (id {key})")
    if image.startswith(("/", "\\")) or ".." in image.replace("\\", "/").split("/"):
        raise DataError(f"{origin}: field `image` must stay inside the image folder, got {image!r} (id {key})")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{origin}: field `conversations` must be a list of turns (id {key})")
    caption = next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None)
    if not isinstance(caption, str):
        raise DataError(f'{origin}: field `conversations` has no turn with "from": "gpt" and a text (id {key})')
    if not caption.strip():
        raise DataError(f"{origin}: the caption is empty (id {key})")
    named = record.get("domain", domain)
    if not isinstance(named, str) or not named:
        raise DataError(f"{origin}: field `domain` must be a non-empty string, got {named!r} (id {key})")
    captions = record.get("captions")
    if captions is None:
        captions = []
    if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise DataError(f"{origin}: field `captions` must be a list of texts, none empty, got {captions!r} (id {key})")
    label = None if record.get("label") is None else str(record["label"])
    client = None if record.get("client") is None else str(record["client"])
    for field, text in (("id", str(key)), ("image", image), ("caption", caption), ("domain", named), ("label", label)):
        check_text(text or "", f"{origin}: field `{field}`")
    for text in captions:
        check_text(text, f"{origin}: field `captions`")
    return Sample(
        str(key),
        image,
        caption.strip(),
        named,
        label,
        origin,
        captions=tuple(text.strip() for text in captions),
        client=client,
    )


def check_text(text: str, what: str) -> None:
    """A text must be one that can be written down.

    Raises:
        DataError: it holds half of a character, as ``"\\ud83d"`` in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} holds half of a character: {error}") from error


def read_records(path: Path, on_bad: str = "error", domain: str = "default") -> Records:
    """Reads a JSON array of records, or JSON lines (an object a line), record by record.

    Args:
        path: the file.
        on_bad: ``"error"`` raises at the first bad record; ``"skip"`` leaves bad ones out and counts them.
        domain: the domain of records that name none.

    Raises:
        DataError: the file is missing or is no JSON, a record is bad, an id stands twice.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected LLaVA-style records as .json or .jsonl")
    samples: list[Sample] = []
    places: dict[str, str] = {}
    num_skipped = 0
    for origin, record in records(path):
        try:
            if isinstance(record, DataError):
                raise record
            sample = parse_record(record, origin, domain)
            if sample.id in places:
                raise DataError(f"{origin}: id {sample.id!r} stands already at {places[sample.id]}; ids must be unique")
        except DataError:
            if on_bad == "error":
                raise
            num_skipped += 1
            continue
        places[sample.id] = origin
        samples.append(sample)
    return Records(samples, num_skipped)
