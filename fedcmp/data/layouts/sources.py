"""From what a user types to files: a file, a folder, a glob, or a brace list of shards."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from fedcmp.data.layouts.base import Layout
from fedcmp.errors import DataError


def find_files(words: Sequence[str], layout: Layout) -> list[Path]:
    """The files that the words name, in their order, each once.

    A folder stands for the layout's files in it, sorted by name.

    Raises:
        DataError: a word names nothing, or a folder with several files that might be meant.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found += _in_folder(path, layout)
        elif path.exists():
            found.append(path)
        else:
            named = [name for one in expand_braces(str(path)) for name in sorted(glob.glob(one)) or [one]]
            missing = [name for name in named if not Path(name).is_file()]
            if missing:
                raise DataError(f"no file {missing[0]}" + (f" (of {word})" if missing[0] != word else ""))
            found += map(Path, named)
    return list(dict.fromkeys(found))


def _in_folder(folder: Path, layout: Layout) -> list[Path]:
    for pattern in layout.files:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1 and not layout.many:
            names = ", ".join(path.name for path in found[:3])
            raise DataError(f"{folder} holds {len(found)} files {pattern} ({names}...): name the one that is meant")
        if found:
            return found
    raise DataError(f"{folder} holds none of {', '.join(layout.files)}; name the file")


def expand_braces(text: str) -> list[str]:
    """What a shell makes of ``{00..11}`` and ``{a,b}``.

    >>> expand_braces("shard-{08..10}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    >>> expand_braces("{train,val}.tar")
    ['train.tar', 'val.tar']
    """
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match.group(1))
    if numbers:
        first, last = numbers.groups()
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        parts = match.group(1).split(",")
    return [one for part in parts for one in expand_braces(text[: match.start()] + part + text[match.end() :])]
