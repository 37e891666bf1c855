"""A public set, or people's own, becomes a domain: records by split beside their pictures, in one layout for all."""

from __future__ import annotations

import hashlib
import heapq
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcmp import __version__
from fedcmp.data.held_out import SIDES, Mark, divide
from fedcmp.data.images import MAX_PIXELS, open_picture, to_rgb, why
from fedcmp.data.layouts import LAYOUTS, Layout, find_files
from fedcmp.data.readers import REPEATED, Item, Options
from fedcmp.data.stores import ImageStore
from fedcmp.errors import ConfigError, DataError, FedcmpError, RunFolderError, nearest
from fedcmp.seeding import derive
from fedcmp.staging import staged

UNKNOWN = "unknown; ask the owner"
"""The licence where none is given."""
PROGRESS_EVERY, MESSAGES_KEPT = 50_000, 5


@dataclass(frozen=True)
class Recipe:
    """What ``fedcmp prepare`` is asked for; its options have these names and say what they are."""

    layout: str
    """A name of LAYOUTS."""
    sources: tuple[str, ...]
    """Files, folders, globs or brace lists."""
    out: Path
    domain: str | None = None
    images: Path | None = None
    """Folder or zip of the pictures; None: where the layout has them."""
    val: int | None = None
    test: int | None = None
    """Pictures held out; None: the set's own, else 512 and at most 5 %."""
    limit: int | None = None
    seed: int = 0
    """Of the draws: what is held out, which records under ``limit``, which of several captions is trained on."""
    skip_bad: bool = False
    check: bool = False
    max_pixels: int = MAX_PIXELS
    copy: bool = False
    licence: str = UNKNOWN
    options: Options = field(default_factory=Options)

    @property
    def name(self) -> str:
        """What the domain is called: by default as its folder."""
        return self.out.resolve().name if self.domain is None else self.domain


def prepare(recipe: Recipe, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Writes the folder of one domain, whole or not at all: ``train.jsonl``, ``val.jsonl``, ``test.jsonl``,
    ``images.zip`` or ``images`` (new, or a link to where the pictures lie), ``source.json``, ``SOURCE.md``.

    Pictures are read one at a time. The same files and seed give the same bytes.

    Args:
        report: gets a line every PROGRESS_EVERY records.

    Returns:
        The content of ``source.json``.

    Raises:
        ConfigError: an option is wrong, or is none of this layout.
        DataError: a source or a record is bad.
        RunFolderError: the folder exists, or cannot be written.
    """
    layout = _checked(recipe)
    files = find_files(recipe.sources, layout)
    with staged(recipe.out) as folder:
        try:
            place = None if layout.images is None else recipe.images or _place(layout.images(files))
            facts: dict[str, Any] = {
                "layout": recipe.layout,
                "domain": recipe.name,
                "licence": recipe.licence,
                "files": [str(path) for path in files],
                "images": {
                    "kind": "packed" if place is None or recipe.copy else "linked",
                    "from": None if place is None else str(place),
                },
                **dict.fromkeys(("counts", "pictures", "splits")),
                "left_out": {"bad": 0, "bad_by_kind": {}, "held_out_elsewhere": 0, "first_bad": []},
                **dict.fromkeys(("repeated_rows", "further_answers", "captions_of_several_lines", "most_words"), 0),
                "seed": recipe.seed,
                "limit": recipe.limit,
            }
            kept = _read_records(recipe, layout, files, place, folder, facts, report)
            marks, given, groups, records = zip(*kept, strict=True)
            sides = divide(marks, given, recipe.val, recipe.test, recipe.seed, groups)
            if facts["images"]["kind"] == "linked":
                assert place is not None
                (folder / ("images" if place.is_dir() else "images.zip")).symlink_to(place.resolve())
            counts = Counter(sides.sides)
            facts["counts"] = {side: counts[side] for side in SIDES}
            facts["left_out"]["held_out_elsewhere"] = counts[None]
            facts["pictures"], facts["splits"] = len(set(marks)), "own" if sides.own else "drawn"
            facts |= {"sha256": {}, "fedcmp": __version__}
            for side in (side for side in SIDES if counts[side]):
                text = "".join(record for record, own in zip(records, sides.sides, strict=True) if own == side)
                (folder / f"{side}.jsonl").write_text(text, encoding="utf-8")
                facts["sha256"][f"{side}.jsonl"] = hashlib.sha256(text.encode()).hexdigest()
            (folder / "source.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (folder / "SOURCE.md").write_text(_page(facts), encoding="utf-8")
        except OSError as error:
            if isinstance(error, FedcmpError):
                raise
            raise RunFolderError(f"cannot write the folder --out {recipe.out}: {error}") from error
    return facts


def _checked(recipe: Recipe) -> Layout:
    if recipe.layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {recipe.layout!r}; {nearest(recipe.layout, LAYOUTS)}")
    layout = LAYOUTS[recipe.layout]
    if recipe.limit is not None and recipe.limit < 1:
        raise ConfigError(f"--limit must be 1 or more, got {recipe.limit}")
    if not recipe.name.strip():
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


def _place(likely: Sequence[Path]) -> Path:
    if found := [path for path in likely if path.exists()]:
        return found[0]
    raise DataError(f"no pictures at {', '.join(map(str, likely))}; say where they are: --images DIR_OR_ZIP")


def _read_records(
    recipe: Recipe,
    layout: Layout,
    files: Sequence[Path],
    place: Path | None,
    folder: Path,
    facts: dict[str, Any],
    report: Callable[[str], None],
) -> list[tuple[Mark, str | None, str | None, str]]:
    """The mark of its picture, split, group and line of each good record; packs pictures, and counts in ``facts``."""
    kept, seen, drawn = [], set[str](), None
    if recipe.limit is not None:  # ids with the lowest hashes; the files are read once more for it
        every = (one for file in files for one in layout.read(file, recipe.options))
        ids = (one.id for one in every if isinstance(one, Item))
        drawn = set(heapq.nsmallest(recipe.limit, ids, key=lambda name: (derive(recipe.seed, "limit", name), name)))
    with ExitStack() as stack:
        store = None if place is None else stack.enter_context(closing(ImageStore(place)))
        pack = None
        if store is None or recipe.copy:
            pack = stack.enter_context(zipfile.ZipFile(folder / "images.zip", "x", zipfile.ZIP_STORED))
        for one in (one for file in files for one in layout.read(file, recipe.options)):
            try:
                if isinstance(one, DataError):
                    raise one
                if drawn is not None and one.id not in drawn:
                    continue
                if one.id in seen:
                    raise DataError(f"{one.origin}: id {one.id!r} is used twice; ids must be unique")
                image, mark = _picture(one, store, pack, recipe)
            except DataError as error:
                if error.kind == REPEATED:
                    facts["repeated_rows"] += 1
                elif recipe.skip_bad:
                    _count_bad(error, facts["left_out"])
                else:
                    raise DataError(f"{error}; --skip-bad leaves such records out", error.kind) from error
                continue
            seen.add(one.id)
            line = json.dumps(_record(one, image, recipe), ensure_ascii=False) + "\n"
            kept.append((mark, one.split, one.group, line))
            facts["further_answers"] += len(one.further)
            facts["captions_of_several_lines"] += sum("\n" in text for text in one.captions)
            facts["most_words"] = max(facts["most_words"], *(len(t.split()) for t in (*one.captions, *one.further)))
            if len(kept) % PROGRESS_EVERY == 0:
                report(f"{len(kept):,} records")
    if not kept:
        raise DataError(f"no record of {files[0]} can be used: {facts['left_out']['first_bad'][:1]}")
    return kept


def _count_bad(error: DataError, left_out: dict[str, Any]) -> None:
    left_out["bad"] += 1
    left_out["bad_by_kind"][error.kind] = left_out["bad_by_kind"].get(error.kind, 0) + 1
    if len(left_out["first_bad"]) < MESSAGES_KEPT:
        left_out["first_bad"].append(str(error))


def _picture(item: Item, store: ImageStore | None, pack: zipfile.ZipFile | None, recipe: Recipe) -> tuple[str, Mark]:
    """Name and mark of an item's picture; it is packed where pictures are, and decoded where they are checked.

    Of a linked zip only the directory is read.
    """
    name, content = item.places[0], item.content or b""
    if store is not None:
        found = next(filter(None, map(store.find, item.places)), None)
        if found is None:
            hint = "" if recipe.skip_bad else "; --images says where pictures are"
            raise DataError(f"{item.origin}: no file {store.path / name.removeprefix(f'{store.top}/')}{hint}")
        name = found
        size, checksum = store.mark(name, item.origin)
        if checksum is not None and size and pack is None and not recipe.check:
            return name, (size, checksum)
        content = store.read(name, item.origin)
    try:
        with open_picture(content) as picture:
            kind = str(picture.format).lower()
            if recipe.check:
                to_rgb(picture, recipe.max_pixels)
    except Exception as error:  # Pillow raises many kinds for corrupted files
        raise DataError(f"{item.origin}: picture {name} cannot be read: {why(error)}") from error
    if store is None:
        name += "." + {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)
    if pack is not None and name not in pack.NameToInfo:
        entry = zipfile.ZipInfo(name)  # its date is 1980 on every day
        entry.external_attr = 0o644 << 16
        pack.writestr(entry, content)
    return name, (len(content), zlib.crc32(content))


def _record(item: Item, image: str, recipe: Recipe) -> dict[str, Any]:
    """A LLaVA record; one of several captions is trained on, all are kept, and so are answers after the first."""
    chosen = item.captions[derive(recipe.seed, "caption", item.id) % len(item.captions)]
    return {
        "id": f"{recipe.name}-{item.id}",  # ids are unique in a whole federation
        "image": image,
        "domain": recipe.name,
        "conversations": [
            {"from": "human", "value": "<image>"},
            *({"from": "gpt", "value": text} for text in (chosen, *item.further)),
        ],
        **({"captions": item.captions} if len(item.captions) > 1 else {}),
        **({"label": item.label} if item.label is not None else {}),
        **({"client": item.client} if item.client is not None else {}),
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
