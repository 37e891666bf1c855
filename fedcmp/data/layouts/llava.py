"""LLaVA-Pretrain: one JSON array of conversations beside a zip of pictures.

``blip_laion_cc_sbu_558k.json`` holds ``{"id": "004539375", "image": "00453/004539375.jpg", "conversations": [{"from":
"human", "value": "...<image>"}, {"from": "gpt", "value": the caption}]}``, ``images.zip`` holds the picture under that
name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcmp.data.json_stream import records
from fedcmp.data.layouts.base import Item, Layout, Options, beside, each, item, member
from fedcmp.errors import DataError

TURNS = ("conversations",)


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The pairs of one file: a JSON array, or an object a line."""
    return each(records(path), lambda record, origin: parse(record, origin, TURNS))


def parse(record: object, origin: str, keys: tuple[str, ...]) -> Item:
    """One conversation; the caption is its first answer.

    Args:
        keys: what the field of its turns may be called.

    Raises:
        DataError: a field is missing or wrong.
    """
    found = next((key for key in keys if isinstance(record, dict) and key in record), keys[0])
    turns = member(record, found, origin)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{origin}: field `{found}` must be a list of turns")
    answers = [turn.get("value") for turn in turns if turn.get("from") == "gpt"]
    if not answers:
        raise DataError(f'{origin}: field `{found}` has no turn with "from": "gpt"')
    return item(
        member(record, "id", origin),
        [member(record, "image", origin)],
        answers[:1],
        origin,
        fields=("id", "image", found),
    )


def images(files: Sequence[Path]) -> list[Path]:
    """Published beside the JSON."""
    return beside(files, "images.zip", "images")


LAYOUT = Layout(read, ("blip_laion_cc_sbu_558k.json", "*.json", "*.jsonl"), False, images)
