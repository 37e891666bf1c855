"""How public image-caption sets lie on disk: a row each."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fedcmp.data import readers
from fedcmp.data.readers import Options, coco_folder
from fedcmp.errors import DataError


class Layout(NamedTuple):
    """How one layout is read."""

    read: Callable[[Path, Options], readers.Rows]
    """The items of a file."""
    files: tuple[str, ...]
    """Patterns of the files to look for where a folder is given, the likeliest first."""
    images: Callable[[Sequence[Path]], list[Path]] | None
    """Where the pictures of such files are likely to lie; None: they come with the records."""
    many: bool = False
    """Whether several such files of a folder belong together."""
    options: tuple[str, ...] = ()
    """The fields of Options that it knows."""


def _beside(*names: str) -> Callable[[Sequence[Path]], list[Path]]:
    return lambda files: [files[0].parent / name for name in names]


def _coco_images(files: Sequence[Path]) -> list[Path]:
    """The folder or zip named like the file, beside it or ``annotations``; for several files, their common folder."""
    homes = [files[0].parent.parent, files[0].parent]
    names = [name for name in map(coco_folder, files) if name]
    if len(names) == 1 == len(files):
        return [home / f"{part}{names[0]}{end}" for home in homes for part in ("", "images/") for end in ("", ".zip")]
    homes += [home / "images" for home in homes]
    return [home for home in homes if names and all((home / name).is_dir() for name in names)]


LAYOUTS = {
    "llava": Layout(
        readers.read_chats,
        ("blip_laion_cc_sbu_558k.json", "*.json", "*.jsonl"),
        _beside("images.zip", "images"),
    ),
    "messages": Layout(readers.read_chats, ("*.json", "*.jsonl"), _beside("images.zip", "images", ".")),
    "llava-med": Layout(
        readers.read_chats,
        ("llava_med_alignment_500k.json", "alignment/*.json", "*.json", "*.jsonl"),
        _beside("images", "images.zip", "../images", "../images.zip"),
    ),
    "roco": Layout(readers.read_parquet, ("data/*.parquet", "*.parquet", "**/*.parquet"), None, many=True),
    "rsicd": Layout(
        readers.read_rsicd,
        ("dataset_rsicd.json", "*.json"),
        _beside("RSICD_images", "RSICD_images.zip", "images", "images.zip"),
    ),
    "nwpu": Layout(
        readers.read_nwpu,
        ("dataset_nwpu.json", "*.json"),
        _beside("NWPU_images", "NWPU_images.zip", "images", "images.zip"),
    ),
    "coco": Layout(readers.read_coco, ("captions_*.json", "annotations/captions_*.json"), _coco_images, many=True),
    "webdataset": Layout(
        readers.read_shard, ("*.tar", "*.tar.gz", "*.tgz", "**/*.tar"), None, many=True, options=("caption_key",)
    ),
    "csv": Layout(
        readers.read_table,
        ("*.csv", "*.tsv"),
        _beside("images", "images.zip", "pictures", "pictures.zip", "."),
        options=tuple(name for name in Options._fields if name.endswith("_column")),
    ),
}


def find_files(words: Sequence[str], layout: Layout) -> list[Path]:
    """The files that the words name, in their order, each once.

    A word is a file, a glob, a brace list of shards, or a folder, which means the layout's files in it.

    Raises:
        DataError: a word names nothing, or a folder with several files that might be meant.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found += _in_folder(path, layout)
            continue
        for name in [str(path)] if path.exists() else expand_braces(str(path)):
            named = [Path(one) for one in sorted(glob.glob(name)) or [name]]
            if not named[0].is_file():
                raise DataError(f"no file {named[0]}")
            found += named
    return list(dict.fromkeys(found))


def _in_folder(folder: Path, layout: Layout) -> list[Path]:
    for pattern in layout.files:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1 and not layout.many:
            raise DataError(f"{folder} has {len(found)} files {pattern}; name the one that is meant")
        if found:
            return found
    raise DataError(f"{folder} has none of {', '.join(layout.files)}; name the file")


def expand_braces(text: str) -> list[str]:
    """What a shell makes of ``{00..11}`` and ``{a,b}``.

    >>> expand_braces("shard-{08..10}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    >>> expand_braces("{train,val}.tar")
    ['train.tar', 'val.tar']
    """
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}", text)
    if match is None:
        return [text]
    first, last, names = match.groups()
    parts = names.split(",") if first is None else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [one for part in parts for one in expand_braces(text[: match.start()] + part + text[match.end() :])]
