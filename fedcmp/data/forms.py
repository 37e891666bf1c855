"""What a record names in the forms that people have: LLaVA's, ShareGPT's and OpenAI's messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcmp.errors import DataError, nearest

TURNS = ("conversations", "conversatons", "messages")
"""What the field of the turns is called; LLaVA-Med really spells it so."""


class NotOnePicture(DataError):
    """A record of text alone, or of several pictures."""

    def __init__(self, origin: str, count: int) -> None:
        super().__init__(f"{origin}: field `image` (or `images`) must name one picture, got {count}")
        self.kind = "records with several pictures" if count else "records without a picture"


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
    if isinstance(names[0], str) and ("://" in names[0] or names[0].startswith("data:")):
        raise DataError(f"{origin}: field `image` must be the path of a file, got the address {names[0][:40]!r}")
    return names[0]


def answers_of(record: Mapping[str, Any], origin: str) -> list[Any]:
    """The answers of a conversation: the first as it is, and those behind it that are texts and not empty.

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
    """A text as it is, or the parts of one."""
    if not isinstance(content, list):
        return content
    return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict)).strip()
