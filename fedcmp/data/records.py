"""Samples, and the reading of LLaVA-style records with errors that name file, line and field."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fedcmp.data.forms import answers_of, id_of, picture_of
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
    group: str | None = None
    """The conversation that it is a part of: held out as one, and of one client; None: it is alone."""


class Records(NamedTuple):
    """What a file held."""

    samples: list[Sample]
    left_out: Counter[str]
    """What is not among them: how many of which kind."""


def parse_pairs(record: object, origin: str, domain: str = "default") -> list[Sample]:
    """The pairs of one record, in a form of ``forms``: its picture with each of its answers.

    Args:
        record: the decoded JSON object.
        origin: where it stands, for messages.
        domain: the domain of records that name none.

    Raises:
        DataError: a field is missing or wrong.
    """
    if not isinstance(record, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(record).__name__}")
    key = id_of(record, origin)
    if isinstance(key, bool) or not isinstance(key, (str, int)) or str(key).strip() == "":
        raise DataError(f"{origin}: field `id` must be a non-empty string or a number, got {key!r}")
    image = picture_of(record, origin)
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise DataError(f"{origin}: field `image` must be the path of a picture, got {image!r} (id {key})")
    if image.startswith(("/", "\\")) or ".." in image.replace("\\", "/").split("/"):
        raise DataError(f"{origin}: field `image` must stay inside the image folder, got {image!r} (id {key})")
    answers = [text.strip() if isinstance(text, str) else "" for text in answers_of(record, origin)]
    if not answers[0]:
        raise DataError(f"{origin}: the caption is empty, or no text (id {key})")
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
    for field, texts in (("id", [str(key)]), ("image", [image]), ("caption", answers), ("domain", [named]),
                          ("label", [label or ""]), ("captions", captions)):  # fmt: skip
        for text in texts:
            check_text(text, f"{origin}: field `{field}`")
    first = Sample(
        str(key),
        image,
        answers[0],
        named,
        label,
        origin,
        captions=tuple(text.strip() for text in captions),
        client=client,
        group=str(key) if len(answers) > 1 else None,
    )
    further = enumerate(answers[1:], start=2)
    return [first, *(replace(first, id=f"{key}#{number}", caption=text, captions=()) for number, text in further)]


def check_text(text: str, what: str) -> None:
    """A text must be one that can be written down.

    Raises:
        DataError: it holds half of a character, as ``"\\ud83d"`` in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} holds half of a character: {error}") from error


def read_records(path: Path, on_bad: str = "error", domain: str = "default", turns: str = "first") -> Records:
    """Reads a JSON array of records, or JSON lines (an object a line), record by record.

    Args:
        path: the file.
        on_bad: ``"error"`` raises at the first bad record; ``"skip"`` leaves bad ones out and counts them.
        domain: the domain of records that name none.
        turns: ``"first"``: of each record the pair with its first answer, and the others are counted; ``"all"``.

    Raises:
        DataError: the file is missing or is no JSON, a record is bad, an id stands twice.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected LLaVA-style records as .json or .jsonl")
    samples: list[Sample] = []
    places: dict[str, str] = {}
    left_out = Counter[str]()
    for origin, record in records(path):
        try:
            if isinstance(record, DataError):
                raise record
            pairs = parse_pairs(record, origin, domain)
            used = pairs if turns == "all" else pairs[:1]
            for one in used:
                if one.id in places:
                    raise DataError(f"{origin}: id {one.id!r} stands already at {places[one.id]}; ids must be unique")
        except DataError as error:
            if on_bad == "error":
                raise
            left_out[error.kind] += 1
            continue
        left_out["answers after the first"] += len(pairs) - len(used)
        places.update((one.id, origin) for one in used)
        samples += used
    return Records(samples, +left_out)
