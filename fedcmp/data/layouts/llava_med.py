"""LLaVA-Med's alignment data: LLaVA's records with ``conversatons``, and a folder of figures of articles.

``llava_med_alignment_500k.json`` really spells the key so; files made from it spell it right. The pictures are not in
it: a script of its publishers fetches the articles and leaves ``images/<id>.jpg``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcmp.data.json_stream import records
from fedcmp.data.layouts import llava
from fedcmp.data.layouts.base import Item, Layout, Options, beside, each
from fedcmp.errors import DataError

TURNS = ("conversatons", "conversations")


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The pairs of one file: a JSON array, or an object a line."""
    return each(records(path), lambda record, origin: llava.parse(record, origin, TURNS))


def images(files: Sequence[Path]) -> list[Path]:
    """``data/images`` beside ``data/alignment``, or beside the file."""
    return beside(files, "images", "images.zip", "../images", "../images.zip")


LAYOUT = Layout(read, ("llava_med_alignment_500k.json", "alignment/*.json", "*.json", "*.jsonl"), False, images)
