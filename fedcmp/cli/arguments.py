"""From words on the command line to a config and run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedcmp.errors import ConfigError

if TYPE_CHECKING:
    from fedcmp.config import Config


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file, if one is given, and the overrides."""
    paths = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(paths) > 1:
        raise ConfigError(f"expected one config file, got {', '.join(paths)}; overrides are written key=value")
    return Path(paths[0]) if paths else None, [word for word in words if word not in paths]


def load(words: Sequence[str]) -> tuple[Config, str]:
    """The config, and the label of its runs."""
    from fedcmp.config import load_config

    path, overrides = split_words(words)
    return load_config(path, overrides), path.stem if path else "demo"


def split_runs(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders and files among words, and the overrides."""
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    return [Path(word) for word in paths], [word for word in words if word not in paths]


def one_run(words: Sequence[str], command: str) -> tuple[Path, list[str]]:
    runs, overrides = split_runs(words)
    if len(runs) != 1:
        raise ConfigError(f"{command} needs one run folder, got {', '.join(map(str, runs)) or 'none'}")
    return runs[0], overrides
