"""Captions of pictures: examples as one PNG, all of them as captions.jsonl."""

from __future__ import annotations

import json
import re
import string
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fedcmp.errors import RunFolderError
from fedcmp.evaluation.assess import Captioned
from fedcmp.federation.folder import RunFolder

SIDE = 224
"""Pixels of the longer side of a kept picture."""
FONT = "DejaVu Sans Mono"
"""Comes with matplotlib: the same picture on every machine."""


class Example(NamedTuple):
    """One picture and what is said about it."""

    picture: Image.Image
    title: str
    reference: str
    generated: str


def draw_captions(examples: Sequence[Example], path: Path) -> None:
    """Draws the examples in rows of three.

    Raises:
        RunFolderError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(examples))
    rows = -(-len(examples) // columns)
    figure = Figure(figsize=(4.0 * columns, 4.1 * rows), layout="constrained")
    for number, example in enumerate(examples):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(example.picture, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_anchor("NW")  # what is written below begins at the left of its column
        axes.set_title(example.title, fontsize=10, loc="left")
        text = "\n".join([*_wrap("reference", example.reference), "", *_wrap("generated", example.generated)])
        axes.set_xlabel(text, fontsize=8, loc="left", fontfamily=FONT)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def list_captions(captioned: Sequence[Captioned], pictures: Sequence[Image.Image], folder: RunFolder) -> None:
    """Writes captions.jsonl, an object a picture: ``id``, ``domain``, ``reference``, ``generated``, ``picture``.

    Args:
        captioned: what is listed.
        pictures: those of the first ones; they are kept as PNG, at most SIDE pixels a side.
        folder: takes captions.jsonl and pictures/; ``picture`` is the place in it, or null.

    Raises:
        RunFolderError: something cannot be written.
    """
    lines = []
    for number, one in enumerate(captioned):
        place = None
        if number < len(pictures):
            place = f"{folder.pictures.name}/{number:02d}-{_plain(one.sample.id)}.png"
            _save(pictures[number], folder.path / place)
        line = {"id": one.sample.id, "domain": one.sample.domain, "reference": one.sample.caption}
        lines.append(json.dumps({**line, "generated": one.generated, "picture": place}, ensure_ascii=False))
    folder.write_text(folder.captions_list, "".join(f"{line}\n" for line in lines))


def _save(picture: Image.Image, path: Path) -> None:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    try:
        path.parent.mkdir(exist_ok=True)
        small.save(path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def _plain(name: str) -> str:
    """A name that every file system takes.

    >>> _plain("train/pets: cat 7")
    'train_pets_cat_7'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:80]


def _wrap(label: str, text: str) -> list[str]:
    clean = _drawable(text).replace("$", r"\$")  # matplotlib would read mathematics
    return textwrap.wrap(f"{label}: {clean}", 52, max_lines=6, placeholder=" ...") or [f"{label}:"]


def _drawable(text: str) -> str:
    """The text with U+FFFD for what the font lacks: a model of bytes says control characters before it says words.

    >>> _drawable("a cat\x13 \N{CAT FACE}")
    'a cat\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}'
    """
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    kept = (one in string.whitespace or font.get_char_index(ord(one)) for one in text)
    return "".join(one if keep else "\N{REPLACEMENT CHARACTER}" for one, keep in zip(text, kept, strict=True))
