"""The command line that asks for a comparison again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from fedcmp.compare.spec import Study


def command(study: Study) -> str:
    """The line that asks for all of a comparison, in a new folder; ``fedcmp.compare.spec.ask`` reads it."""
    last = {override.partition("=")[0]: override for override in study.overrides}
    words = ["fedcmp", "compare", *([study.file] if study.file else []), *last.values()]
    words += ["--methods", ",".join(_entry(one.label, one.preset, one.overrides) for one in study.methods)]
    if any(one.name for one in study.settings):
        words += ["--scenarios", ",".join(_entry(one.label, one.name, one.overrides) for one in study.settings)]
    if study.optimizers:
        words += ["--optimizers", ",".join(f"{name}={lr:g}" for name, lr in study.optimizers)]
    optional = ["tuning_seeds"] * (study.tuning_seeds > 1) + ["extra_seeds", "rivals"] * bool(study.extra_seeds)
    for name in ("seeds", "budget", *optional, "reference"):
        words += [f"--{name.replace('_', '-')}", str(getattr(study, name))]
    words += ["--no-bounds"] * (not study.bounds) + ["--keep-projectors"] * study.keep_projectors
    return shlex.join(words)


def _entry(label: str, name: str, overrides: Sequence[str]) -> str:
    """``[label=]NAME[:key=value]*``."""
    head = _quoted(name) if label == name and not overrides else f"{_quoted(label)}={_quoted(name)}"
    return ":".join([head, *overrides])


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w./+-]+", word):
        return word
    return f'"{word}"' if "'" in word else f"'{word}'"
