"""From the files of a set to records and pictures in one place; what is remembered of each record is small."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple, TextIO

from fedcmp.data.images import decode
from fedcmp.data.layouts import Item, Layout
from fedcmp.data.layouts.base import Repeated
from fedcmp.data.layouts.pictures import Mark, Pack, Pictures, look, mark
from fedcmp.data.recipe import Recipe
from fedcmp.data.records import Sample
from fedcmp.data.splits import SIDES
from fedcmp.errors import DataError
from fedcmp.seeding import derive

_TOLD = 50_000
_SHOWN = 5


class Gathered(NamedTuple):
    """What is remembered of each good record while its text lies on disk."""

    marks: list[Mark]
    splits: list[str | None]
    groups: list[str | None]
    bad: list[str]
    """The first messages."""
    num_bad: Counter[str]
    """By kind."""
    num_repeated: int
    """Rows that repeat another, picture and caption."""
    num_further: int
    """Answers after the first of each conversation."""
    num_multiline: int
    """Captions with line breaks."""
    most_words: int
    """Of the longest caption."""


def _items(recipe: Recipe, layout: Layout, files: Sequence[Path]) -> Iterator[Item | DataError]:
    for file in files:
        try:
            yield from layout.read(file, recipe.options)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error}") from error


def _drawn(recipe: Recipe, layout: Layout, files: Sequence[Path]) -> set[str] | None:
    """The ids that ``limit`` leaves, by a hash of id and seed; the files are read once more for it."""
    if recipe.limit is None:
        return None
    ids = (one.id for one in _items(recipe, layout, files) if isinstance(one, Item))
    return set(heapq.nsmallest(recipe.limit, ids, key=lambda name: (derive(recipe.seed, "limit", name), name)))


def gather(
    recipe: Recipe,
    layout: Layout,
    files: Sequence[Path],
    domain: str,
    place: Path | None,
    folder: Path,
    tell: Callable[[str], None],
) -> Gathered:
    """Writes all good records to one file, and the pictures where they are packed."""
    drawn = _drawn(recipe, layout, files)
    marks: list[Mark] = []
    splits: list[str | None] = []
    groups: list[str | None] = []
    bad: list[str] = []
    num_bad = Counter[str]()
    num_repeated = num_further = num_multiline = most_words = 0
    seen: set[str] = set()
    with ExitStack() as stack:
        pictures = None if place is None else stack.enter_context(closing(Pictures(place)))
        pack = None if place is not None and not recipe.copy else stack.enter_context(Pack(folder / "images.zip"))
        records = stack.enter_context((folder / "records.part").open("w", encoding="utf-8"))
        for found in _items(recipe, layout, files):
            if drawn is not None and isinstance(found, Item) and found.id not in drawn:
                continue
            if isinstance(found, Repeated):
                num_repeated += 1
                continue
            try:
                if isinstance(found, DataError):
                    raise found
                if found.id in seen:
                    raise DataError(f"{found.origin}: id {found.id!r} stands twice; ids must be unique")
                image, picture = _picture(found, pictures, pack, recipe.max_pixels if recipe.check else None)
            except DataError as error:
                if not recipe.skip_bad:
                    raise
                num_bad[error.kind] += 1
                bad += [str(error)][: _SHOWN - len(bad)]
                continue
            seen.add(found.id)
            num_multiline += sum("\n" in text for text in found.captions)
            most_words = max(most_words, *(len(text.split()) for text in (*found.captions, *found.further)))
            _write(records, found, image, domain, recipe.seed)
            num_further += len(found.further)
            marks.append(picture)
            splits.append(found.split)
            groups.append(found.group)
            if len(marks) % _TOLD == 0:
                tell(f"{len(marks):,} records")
    if not marks:
        raise DataError(f"no record of {', '.join(map(str, files))} can be used" + (f": {bad[0]}" if bad else ""))
    return Gathered(marks, splits, groups, bad, num_bad, num_repeated, num_further, num_multiline, most_words)


def _picture(found: Item, pictures: Pictures | None, pack: Pack | None, max_pixels: int | None) -> tuple[str, Mark]:
    """Name and mark of an item's picture; it is packed where pictures are, and decoded if ``max_pixels`` is given."""
    if pictures is None or found.content is not None:
        assert found.content is not None
        assert pack is not None
        content = found.content()
        name = f"{found.places[0]}.{look(content, found.places[0], found.origin)}"
    else:
        name = pictures.find(found.places, found.origin)
        if pack is None and max_pixels is None:
            return name, pictures.mark(name, found.origin)
        content = pictures.read(name, found.origin)
        look(content, name, found.origin)
    if max_pixels is not None:
        decode(content, Sample(found.id, name, found.captions[0], "", origin=found.origin), max_pixels)
    if pack is not None:
        pack.add(name, content)
    return name, mark(content)


def _write(file: TextIO, found: Item, image: str, domain: str, seed: int) -> None:
    """One LLaVA record; one of several captions is trained on, all are kept, and so are answers after the first."""
    several = len(found.captions) > 1
    chosen = found.captions[derive(seed, "caption", found.id) % len(found.captions)]
    record = {
        "id": f"{domain}-{found.id}",  # ids are unique in a whole federation
        "image": image,
        "domain": domain,
        "conversations": [
            {"from": "human", "value": "<image>"},
            *({"from": "gpt", "value": text} for text in (chosen, *found.further)),
        ],
        **({"captions": found.captions} if several else {}),
        **({"label": found.label} if found.label is not None else {}),
        **({"client": found.client} if found.client is not None else {}),
    }
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def assign(folder: Path, sides: Sequence[str | None]) -> dict[str, str]:
    """Parts the records into a file a side; returns the SHA-256 of each. The training file has no name yet."""
    names = {side: f"{side}.jsonl" for side in SIDES if side in set(sides)} | {"train": "train.part"}
    hashes = {side: hashlib.sha256() for side in names}
    with ExitStack() as stack:
        files = {side: stack.enter_context((folder / name).open("wb")) for side, name in names.items()}
        lines = stack.enter_context((folder / "records.part").open("rb"))
        for line, side in zip(lines, sides, strict=True):
            if side is not None:
                files[side].write(line)
                hashes[side].update(line)
    (folder / "records.part").unlink()
    return {f"{side}.jsonl": digest.hexdigest() for side, digest in hashes.items()}
