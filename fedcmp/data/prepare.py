"""A public set, or people's own, becomes a domain: records by split beside their pictures, in one layout for all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp import __version__
from fedcmp.data.gathering import Gathered, assign, gather
from fedcmp.data.layouts import LAYOUTS, Layout, find_layout
from fedcmp.data.layouts.sources import find_files
from fedcmp.data.recipe import Recipe
from fedcmp.data.splits import SIDES, divide
from fedcmp.errors import ConfigError, DataError, FedcmpError, RunFolderError
from fedcmp.staging import staged


class Prepared(NamedTuple):
    """What was made."""

    folder: Path
    facts: dict[str, Any]
    """The content of ``source.json``."""


def prepare(recipe: Recipe, tell: Callable[[str], None] = lambda line: None) -> Prepared:
    """Writes the folder of one domain, whole or not at all: ``train.jsonl``, ``val.jsonl``, ``test.jsonl``,
    ``images.zip`` or ``images`` (new, or a link to where the pictures lie), ``source.json``, ``SOURCE.md``.

    Pictures are read one at a time. The same files and seed give the same bytes.

    Args:
        tell: gets a line now and then.

    Raises:
        ConfigError: an option is wrong, or is none of this layout.
        DataError: a source or a record is bad.
        RunFolderError: the folder exists, or cannot be written.
    """
    layout = _checked(recipe)
    files = find_files(recipe.sources, layout)
    domain = recipe.domain or recipe.out.resolve().name
    with staged(recipe.out) as folder:
        try:
            place = None if layout.images is None else recipe.images or _place(layout, files)
            gathered = gather(recipe, layout, files, domain, place, folder, tell)
            marks, splits, groups = gathered.marks, gathered.splits, gathered.groups
            sides, own = divide(marks, splits, recipe.val, recipe.test, recipe.seed, groups)
            hashes = assign(folder, sides)
            packed = layout.images is None or recipe.copy
            if place is not None and not packed:
                (folder / ("images" if place.is_dir() else "images.zip")).symlink_to(place.resolve())
            facts = _facts(recipe, domain, files, place, packed, gathered, sides, own, hashes)
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
    for path in likely:
        if path.exists():
            return path
    looked = f"looked for {', '.join(map(str, likely))}" if likely else "their files are in several folders"
    raise DataError(f"the pictures of {files[0]} were not found ({looked}); say where they are: --images DIR_OR_ZIP")


def _facts(
    recipe: Recipe,
    domain: str,
    files: Sequence[Path],
    place: Path | None,
    packed: bool,
    gathered: Gathered,
    sides: Sequence[str | None],
    own: bool,
    hashes: dict[str, str],
) -> dict[str, Any]:
    counts = Counter(sides)
    return {
        "layout": recipe.layout,
        "domain": domain,
        "licence": recipe.licence,
        "files": [str(path) for path in files],
        "images": {"kind": "packed" if packed else "linked", "from": None if place is None else str(place)},
        "counts": {side: counts[side] for side in SIDES},
        "pictures": len(set(gathered.marks)),
        "splits": "own" if own else "drawn",
        "left_out": {
            "bad": gathered.num_bad.total(),
            "bad_by_kind": dict(gathered.num_bad),
            "held_out_elsewhere": counts[None],
            "first_bad": gathered.bad,
        },
        "repeated_rows": gathered.num_repeated,
        "further_answers": gathered.num_further,
        "captions_of_several_lines": gathered.num_multiline,
        "most_words": gathered.most_words,
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
