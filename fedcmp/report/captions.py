"""Captions of pictures: examples as one PNG, all of them as captions.jsonl."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fedcmp.errors import RunFolderError
from fedcmp.evaluation.assess import Captioned
from fedcmp.federation.folder import RunFolder
from fedcmp.report.figures import figure_style, save_figure

SIDE = 224
"""Pixels of the longer side of a kept picture."""


class Example(NamedTuple):
    """One picture and its captions."""

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
    with figure_style():
        figure = Figure(figsize=(4.0 * columns, 4.1 * rows), layout="constrained")
        for number, example in enumerate(examples):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.imshow(example.picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[], anchor="NW")
            axes.spines[:].set_visible(False)
            axes.set_title(example.title, fontsize=10, loc="left")
            text = [*_wrap("reference", example.reference), "", *_wrap("generated", example.generated)]
            axes.set_xlabel("\n".join(text), fontsize=8, loc="left", fontfamily="monospace")
        save_figure(figure, path, dpi=110)


def _wrap(label: str, text: str) -> list[str]:
    """Lines of text; U+FFFD is for what cannot be printed: a model of bytes may generate control characters."""
    clean = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(text.split()))
    return textwrap.wrap(f"{label}: {clean}", 52, max_lines=6, placeholder=" ...")


def list_captions(captioned: Sequence[Captioned], pictures: Sequence[Image.Image], folder: RunFolder) -> None:
    """Writes captions.jsonl, an object a picture: ``id``, ``domain``, ``reference``, ``generated``, ``picture``.

    Args:
        captioned: in the order of the lines.
        pictures: those of the first ones; they are kept as PNG, at most SIDE pixels a side.
        folder: of the run, gets captions.jsonl and pictures/; ``picture`` is a path inside it, or null.

    Raises:
        RunFolderError: something cannot be written.
    """
    lines = []
    for number, one in enumerate(captioned):
        place = None
        if number < len(pictures):
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", one.sample.id)[:80]  # on every file system
            place = f"{folder.pictures.name}/{number:02d}-{name}.png"
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
