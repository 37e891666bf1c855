"""Test pictures with what the model says about them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from fedcmp.errors import RunFolderError
from fedcmp.report.blocks import Card, Section
from fedcmp.report.run.reading import Run

MOST = 24
"""Up to so many examples are on the page."""
SHOWN = 8
"""Up to so many at once; those with a picture come first."""
SIDE = 224
"""Their longest side, in pixels."""
SMALL = 16_000
"""A PNG up to so many bytes stays a PNG; larger ones become JPEG."""


def examples_section(run: Run) -> Section | None:
    """None where no picture was captioned."""
    cards = [
        Card(
            str(one.get("domain") or ""),
            _picture(run.path, one.get("picture")),
            str(one.get("reference") or ""),
            str(one.get("generated") or ""),
        )
        for one in sorted(run.examples, key=lambda one: not one.get("picture"))[:MOST]
    ]
    cards.sort(key=lambda card: not card.source)
    if not cards:
        return None
    more = len(run.examples) - len(cards)
    text = f"Captions are greedy. {more} more are in captions.jsonl." if more else "Captions are greedy."
    shown = min(SHOWN, sum(bool(card.source) for card in cards) or SHOWN)
    title = "What the model says about test pictures"
    return Section("examples", title, [text], cards=cards[:shown], more_cards=cards[shown:])


def _picture(folder: Path, name: object) -> str:
    """Empty where there is none, or where its name leads out of the run folder."""
    if not isinstance(name, str) or not name:
        return ""
    path = (folder / name).resolve()
    return _data(path, SIDE) if path.is_relative_to(folder.resolve()) and path.is_file() else ""


def _data(path: Path, side: int) -> str:
    """A ``data:`` address of the picture, made smaller if it is large.

    Raises:
        RunFolderError: it is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read as a picture: {error}") from error
    picture.thumbnail((side, side))
    kind, content = "png", _encoded(picture, "PNG", optimize=True)
    if len(content) > SMALL:
        kind, content = "jpeg", _encoded(picture, "JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(picture: object, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)  # type: ignore[attr-defined]
    return content.getvalue()
