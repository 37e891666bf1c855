"""Example pictures with their reference and generated captions, as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fedcmp.errors import RunFolderError


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
        axes.set_title(example.title, fontsize=10, loc="left")
        text = "\n".join([*_wrap("reference", example.reference), "", *_wrap("generated", example.generated)])
        axes.set_xlabel(text, fontsize=8, loc="left", fontfamily="monospace")
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def _wrap(label: str, text: str) -> list[str]:
    clean = text.replace("$", r"\$")  # matplotlib would read mathematics
    return textwrap.wrap(f"{label}: {clean}", 52, max_lines=6, placeholder=" ...") or [f"{label}:"]
