"""Conversations about a picture: LLaVA's, LLaVA-Med's, ShareGPT's, and the messages of OpenAI, LLaMA-Factory, ms-swift.

``blip_laion_cc_sbu_558k.json`` holds ``{"id": "004539375", "image": "00453/004539375.jpg", "conversations": [{"from":
"human", "value": "...<image>"}, {"from": "gpt", "value": the caption}]}``, ``images.zip`` holds the picture under that
name. LLaVA-Med's alignment data call the turns ``conversatons``; a script of its publishers fetches articles and leaves
their figures as ``images/<id>.jpg``. Other forms: ``fedcmp.data.forms``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedcmp.data.forms import answers_of, id_of, picture_of
from fedcmp.data.json_stream import records
from fedcmp.data.layouts.base import Item, Layout, Options, beside, each, item, member
from fedcmp.errors import DataError


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The pairs of one file: a JSON array, or an object a line."""
    return each(records(path), parse)


def parse(record: object, origin: str) -> Item:
    """One conversation; the caption is its first answer, and the others are kept beside it.

    Raises:
        DataError: a field is missing or wrong.
    """
    if not isinstance(record, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(record).__name__}")
    caption, *further = answers_of(record, origin)
    name = id_of(record, origin)
    return item(
        member(record, "id", origin) if name is None else name,
        [picture_of(record, origin)],
        [caption],
        origin,
        fields=("id", "image", "conversations"),
        further=further,
    )


LAYOUT = Layout(
    read,
    ("blip_laion_cc_sbu_558k.json", "*.json", "*.jsonl"),
    False,
    lambda files: beside(files, "images.zip", "images"),
)
MED = LAYOUT._replace(
    files=("llava_med_alignment_500k.json", "alignment/*.json", "*.json", "*.jsonl"),
    images=lambda files: beside(files, "images", "images.zip", "../images", "../images.zip"),
)
MESSAGES = LAYOUT._replace(images=lambda files: beside(files, "images.zip", "images", "."))
