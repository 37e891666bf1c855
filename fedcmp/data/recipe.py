"""What ``fedcmp prepare`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedcmp.data.images import MAX_PIXELS
from fedcmp.data.layouts import Options

UNKNOWN = "unknown; ask the owner"


@dataclass(frozen=True)
class Recipe:
    """What is made of what."""

    layout: str
    """A name of LAYOUTS."""
    sources: tuple[str, ...]
    """Files, folders, globs or brace lists."""
    out: Path
    """The new folder of the domain."""
    domain: str | None = None
    """What the domain is called; None: as the folder is."""
    images: Path | None = None
    """Folder or zip of the pictures; None: where the layout has them."""
    val: int | None = None
    """Pictures held out for validation; None: the set's own, else 512 and at most 5 %."""
    test: int | None = None
    """Pictures held out for the test; likewise."""
    limit: int | None = None
    """So many records, drawn at random; None: all."""
    seed: int = 0
    """Of the draws: what is held out, which records under ``limit``, which of several captions is trained on."""
    skip_bad: bool = False
    """Leaves bad records out and counts them; else the first is an error."""
    check: bool = False
    """Decodes every picture, so that a corrupted one is a bad record here and not in the midst of a run."""
    max_pixels: int = MAX_PIXELS
    """Larger pictures are bad records where pictures are checked."""
    copy: bool = False
    """Packs the pictures into a new zip instead of linking them."""
    licence: str = UNKNOWN
    """What the records and pictures may be used for."""
    options: Options = field(default_factory=Options)
    """About the files, for layouts that leave a choice."""
