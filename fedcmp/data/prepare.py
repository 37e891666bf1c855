"""A public set, or people's own, becomes a domain: records by split beside their pictures, in one layout for all."""

from __future__ import annotations

import hashlib
import heapq
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp import __version__
from fedcmp.data.held_out import SIDES, Mark, Sides, divide
from fedcmp.data.images import MAX_PIXELS, decode, open_picture, why
from fedcmp.data.layouts import LAYOUTS, Item, Layout, find_files, find_layout, read_items
from fedcmp.data.readers import Options, Repeated
from fedcmp.data.records import Sample
from fedcmp.data.stores import ImageStore
from fedcmp.errors import ConfigError, DataError, FedcmpError, RunFolderError
from fedcmp.seeding import derive
from fedcmp.staging import staged

UNKNOWN = "unknown; ask the owner"
PROGRESS_EVERY, MESSAGES_KEPT = 50_000, 5


@dataclass(frozen=True)
class Recipe:
    """What ``fedcmp prepare`` is asked for."""

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
    """Decodes every picture, so that a corrupted one is a bad record here and does not stop a run."""
    max_pixels: int = MAX_PIXELS
    """Larger pictures are bad records where pictures are checked."""
    copy: bool = False
    """Packs the pictures into a new zip instead of linking them."""
    licence: str = UNKNOWN
    """What the records and pictures may be used for."""
    options: Options = field(default_factory=Options)
    """About the files, for layouts that leave a choice."""


class Prepared(NamedTuple):
    """What was made."""

    folder: Path
    facts: dict[str, Any]
    """The content of ``source.json``."""


@dataclass
class Gathered:
    """What is in memory of the good records while their texts lie on disk."""

    marks: list[Mark] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """The first messages."""
    num_bad: Counter[str] = field(default_factory=Counter)
    """By kind."""
    num_repeated: int = 0
    """Rows that repeat another, picture and caption."""
    num_further: int = 0
    """Answers after the first of each conversation."""
    num_multiline: int = 0
    """Captions with line breaks."""
    most_words: int = 0
    """Of the longest caption."""


def prepare(recipe: Recipe, report: Callable[[str], None] = lambda line: None) -> Prepared:
    """Writes the folder of one domain, whole or not at all: ``train.jsonl``, ``val.jsonl``, ``test.jsonl``,
    ``images.zip`` or ``images`` (new, or a link to where the pictures lie), ``source.json``, ``SOURCE.md``.

    Pictures are read one at a time. The same files and seed give the same bytes.

    Args:
        report: gets a line every PROGRESS_EVERY records.

    Raises:
        ConfigError: an option is wrong, or is none of this layout.
        DataError: a source or a record is bad.
        RunFolderError: the folder exists, or cannot be written.
    """
    layout = _checked(recipe)
    recipe = replace(recipe, domain=recipe.domain or recipe.out.resolve().name)
    files = find_files(recipe.sources, layout)
    with staged(recipe.out) as folder:
        try:
            place = None if layout.images is None else recipe.images or _place(layout, files)
            found = _gather(recipe, layout, files, place, folder, report)
            sides = divide(found.marks, found.splits, recipe.val, recipe.test, recipe.seed, found.groups)
            hashes = _write_sides(folder, sides.sides)
            if place is not None and not recipe.copy:
                (folder / ("images" if place.is_dir() else "images.zip")).symlink_to(place.resolve())
            facts = _facts(recipe, files, place, found, sides, hashes)
            (folder / "source.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (folder / "SOURCE.md").write_text(_page(facts), encoding="utf-8")
            (folder / "train.part").rename(folder / "train.jsonl")  # last: it is what makes a folder a domain
        except OSError as error:
            if isinstance(error, FedcmpError):
                raise
            raise RunFolderError(f"cannot write the folder --out {recipe.out}: {error}") from error
    return Prepared(recipe.out, facts)


def _checked(recipe: Recipe) -> Layout:
    layout = find_layout(recipe.layout)
    if recipe.limit is not None and recipe.limit < 1:
        raise ConfigError(f"--limit must be 1 or more, got {recipe.limit}")
    if recipe.domain is not None and not recipe.domain.strip():
        raise ConfigError("--domain must be a name, got none")
    for name, value in recipe.options._asdict().items():
        if value is not None and name not in layout.options:
            whose = ", ".join(other for other, one in LAYOUTS.items() if name in one.options)
            raise ConfigError(f"--{name.replace('_', '-')} is for layout {whose}, not for {recipe.layout}")
    if recipe.options.group_column and recipe.test == 0:
        raise ConfigError("--test 0 leaves halving to the run, which knows no --group-column; give a number")
    if recipe.images is not None and layout.images is None:
        raise ConfigError(f"--images: the pictures of layout {recipe.layout} come with its records")
    return layout


def _place(layout: Layout, files: Sequence[Path]) -> Path:
    assert layout.images is not None
    likely = layout.images(files)
    found = next((path for path in likely if path.exists()), None)
    if found is None:
        looked = ", ".join(map(str, likely))
        raise DataError(f"no pictures of {files[0]} at {looked}; say where they are: --images DIR_OR_ZIP")
    return found


def _items(recipe: Recipe, layout: Layout, files: Sequence[Path]) -> Iterator[Item | DataError]:
    for file in files:
        yield from read_items(layout, file, recipe.options)


def _gather(
    recipe: Recipe,
    layout: Layout,
    files: Sequence[Path],
    place: Path | None,
    folder: Path,
    report: Callable[[str], None],
) -> Gathered:
    """Writes all good records to one file, and the pictures where they are packed."""
    found, seen, drawn = Gathered(), set[str](), None
    if recipe.limit is not None:  # ids with the lowest hashes; the files are read once more for it
        ids = (one.id for one in _items(recipe, layout, files) if isinstance(one, Item))
        drawn = set(heapq.nsmallest(recipe.limit, ids, key=lambda name: (derive(recipe.seed, "limit", name), name)))
    with ExitStack() as stack:
        store = None if place is None else stack.enter_context(closing(ImageStore(place)))
        pack = None
        if store is None or recipe.copy:
            pack = stack.enter_context(zipfile.ZipFile(folder / "images.zip", "x", zipfile.ZIP_STORED))
        records = stack.enter_context((folder / "records.part").open("w", encoding="utf-8"))
        for one in _items(recipe, layout, files):
            if isinstance(one, Repeated):
                found.num_repeated += 1
                continue
            try:
                if isinstance(one, DataError):
                    raise one
                if drawn is not None and one.id not in drawn:
                    continue
                if one.id in seen:
                    raise DataError(f"{one.origin}: id {one.id!r} is used twice; ids must be unique")
                image, mark = _picture(one, store, pack, recipe)
            except DataError as error:
                if not recipe.skip_bad:
                    raise
                found.num_bad[error.kind] += 1
                found.bad += [str(error)][: MESSAGES_KEPT - len(found.bad)]
                continue
            seen.add(one.id)
            records.write(json.dumps(_record(one, image, recipe), ensure_ascii=False) + "\n")
            found.num_multiline += sum("\n" in text for text in one.captions)
            found.most_words = max(found.most_words, *(len(text.split()) for text in (*one.captions, *one.further)))
            found.num_further += len(one.further)
            found.marks.append(mark)
            found.splits.append(one.split)
            found.groups.append(one.group)
            if len(found.marks) % PROGRESS_EVERY == 0:
                report(f"{len(found.marks):,} records")
    if not found.marks:
        raise DataError(f"no record of {files[0]} can be used" + (f": {found.bad[0]}" if found.bad else ""))
    return found


def _picture(item: Item, store: ImageStore | None, pack: zipfile.ZipFile | None, recipe: Recipe) -> tuple[str, Mark]:
    """Name and mark of an item's picture; it is packed where pictures are, and decoded where they are checked.

    Of a linked zip only the directory is read.
    """
    if store is None:
        assert item.content is not None
        content = item.content()
        name = f"{item.places[0]}.{_suffix(content, item.places[0], item.origin)}"
    else:
        name = _find(store, item)
        size, checksum = store.mark(name, item.origin)
        if checksum is not None and size and pack is None and not recipe.check:
            return name, (size, checksum)
        content = store.read(name, item.origin)
        _suffix(content, name, item.origin)
    if recipe.check:
        decode(content, Sample(item.id, name, "", "", origin=item.origin), recipe.max_pixels)
    if pack is not None and name not in pack.NameToInfo:
        entry = zipfile.ZipInfo(name)  # its date is 1980 on every day
        entry.external_attr = 0o644 << 16
        pack.writestr(entry, content)
    return name, (len(content), zlib.crc32(content))


def _find(store: ImageStore, item: Item) -> str:
    """The name of a picture: the first of its places that exists, itself, below the folder that all of a zip lies in,
    or without a first part that is the name of this folder."""
    for place in item.places:
        first, _, rest = place.partition("/")
        for name in (place, f"{store.top}/{place}", rest if first == store.top else ""):
            if name and store.has(name):
                return name
    raise DataError(f"{item.origin}: picture {item.places[0]} is not in {store.path}")


def _suffix(content: bytes, name: str, origin: str) -> str:
    """The usual suffix of a picture's format, read from its first bytes; it is not decoded.

    Raises:
        DataError: ``open_picture`` refuses it.
    """
    try:
        with open_picture(content) as picture:
            kind = str(picture.format).lower()
    except Exception as error:  # Pillow raises many kinds for corrupted files
        raise DataError(f"{origin}: {name} is no picture that can be read: {why(error)}") from error
    return {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)


def _record(item: Item, image: str, recipe: Recipe) -> dict[str, Any]:
    """A LLaVA record; one of several captions is trained on, all are kept, and so are answers after the first."""
    chosen = item.captions[derive(recipe.seed, "caption", item.id) % len(item.captions)]
    return {
        "id": f"{recipe.domain}-{item.id}",  # ids are unique in a whole federation
        "image": image,
        "domain": recipe.domain,
        "conversations": [
            {"from": "human", "value": "<image>"},
            *({"from": "gpt", "value": text} for text in (chosen, *item.further)),
        ],
        **({"captions": item.captions} if len(item.captions) > 1 else {}),
        **({"label": item.label} if item.label is not None else {}),
        **({"client": item.client} if item.client is not None else {}),
    }


def _write_sides(folder: Path, sides: Sequence[str | None]) -> dict[str, str]:
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


def _facts(
    recipe: Recipe, files: Sequence[Path], place: Path | None, found: Gathered, sides: Sides, hashes: dict[str, str]
) -> dict[str, Any]:
    counts = Counter(sides.sides)
    packed = place is None or recipe.copy
    return {
        "layout": recipe.layout,
        "domain": recipe.domain,
        "licence": recipe.licence,
        "files": [str(path) for path in files],
        "images": {"kind": "packed" if packed else "linked", "from": None if place is None else str(place)},
        "counts": {side: counts[side] for side in SIDES},
        "pictures": len(set(found.marks)),
        "splits": "own" if sides.own else "drawn",
        "left_out": {
            "bad": found.num_bad.total(),
            "bad_by_kind": dict(found.num_bad),
            "held_out_elsewhere": counts[None],
            "first_bad": found.bad,
        },
        "repeated_rows": found.num_repeated,
        "further_answers": found.num_further,
        "captions_of_several_lines": found.num_multiline,
        "most_words": found.most_words,
        "seed": recipe.seed,
        "limit": recipe.limit,
        "sha256": hashes,
        "fedcmp": __version__,
    }


def _page(facts: dict[str, Any]) -> str:
    counts, left = facts["counts"], facts["left_out"]
    names = ", ".join(facts["files"][:3]) + (f" and {len(facts['files']) - 3} more" if len(facts["files"]) > 3 else "")
    return f"""# {facts["domain"]}

- Source: {names} (layout `{facts["layout"]}`)
- Licence: {facts["licence"]}
- Samples: {counts["train"]:,} training, {counts["val"]:,} validation, {counts["test"]:,} test
- Pictures: {facts["pictures"]:,} different ones, {facts["images"]["kind"]}
- Splits: {facts["splits"]}, seed {facts["seed"]}
- Left out: {left["bad"]:,} bad records, {left["held_out_elsewhere"]:,} samples whose picture is held out elsewhere
- Repeated rows, left out: {facts["repeated_rows"]:,}

Made by `fedcmp prepare` {facts["fedcmp"]}; `source.json` has the same and the hashes.
"""
