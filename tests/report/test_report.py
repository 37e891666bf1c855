"""Tables and pictures that people look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcmp.errors import RunFolderError
from fedcmp.report.captions import Example, draw_captions
from fedcmp.report.table import table


def test_tables_align() -> None:
    text = table([["a", 1.0, 12345], ["long name", None, 7]], ["name", "x", "n"])
    assert text.splitlines() == [
        "name           x       n",
        "---------  -----  ------",
        "a          1.000  12,345",
        "long name      -       7",
    ]


def test_captions_are_drawn(tmp_path: Path) -> None:
    examples = [Example(Image.new("RGB", (8, 8), "red"), "domain", "costs $5 and $6", "word " * 100)] * 4
    draw_captions(examples, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    red = (pixels == [255, 0, 0]).all(-1).mean()
    assert 0.2 < red < 0.8
    with pytest.raises(RunFolderError, match="cannot write"):
        draw_captions(examples, tmp_path / "none" / "c.png")


def test_captions_of_any_characters_are_drawn(tmp_path: Path) -> None:
    every = [chr(number) for number in (*range(0x300), 0x4E2D, 0x2028, 0xD800, 0xFFFF, 0x1F431, 0x10FFFF)]
    texts = ["".join(every[start : start + 100]) for start in range(0, len(every), 100)]
    draw_captions([Example(Image.new("RGB", (8, 8)), "any", text, text) for text in texts], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
