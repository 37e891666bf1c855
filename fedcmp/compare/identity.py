"""The identity of a run: one that is in the folder is not run again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

from fedcmp.config import Config, differences
from fedcmp.runs.train import MAY_CHANGE

DEFAULTS = 2
"""The edition of the config's defaults: a changed default that touches results raises it."""
FOLDERS = {
    "FEDCMP_DATA": "../shared/data",
    "FEDCMP_SCALE_DATA": "data/federation",
    "LLAVA_PRETRAIN": "data/LLaVA-Pretrain",
}
"""Variable by which shipped configs name a folder of data -> the folder without it."""


def folders(*configs: Config) -> dict[str, str]:
    """The variables of ``FOLDERS`` in whose folders the configs have something, and where these are now."""
    places = {name: os.environ.get(name, folder) for name, folder in FOLDERS.items()}
    changes = [change for config in configs for change in differences(Config(), config)]
    return {
        name: folder for name, folder in places.items()
        if any(_named(change, {name: folder}) != change for change in changes)
    }  # fmt: skip


def identity(kind: str, config: Config, places: Mapping[str, str] | None = None) -> str:
    """The name of a run: readable, and a hash of what its config sets beside the defaults, but for ``MAY_CHANGE``.

    A new setting of a new version leaves old runs known.

    Args:
        kind: ``centralized``, ``local``, or empty for a federated run.
        config: of the run, resolved.
        places: variable -> folder: a path in the folder counts as the variable's name and the rest.

    >>> from fedcmp.config import amend
    >>> identity("", Config()) == identity("", amend(Config(), ["run.dir=x", "wandb.mode=disabled"]))
    True
    >>> identity("", Config()).rpartition("-")[0], identity("local", Config()).rpartition("-")[0]
    ('domain-fedcmp-seed-0', 'domain-local-seed-0')
    >>> here, there = (amend(Config(), [f"model.tower={folder}/vit"]) for folder in ("/a", "/b"))
    >>> identity("", here, {"MODELS": "/a"}) == identity("", there, {"MODELS": "/b"})
    True
    """
    content = {
        _named(change, places or {}) for change in differences(Config(), config)
        if not any(f"{change.split(':')[0]}.".startswith(f"{part}.") for part in MAY_CHANGE)
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps([DEFAULTS, kind, sorted(content)]).encode()).hexdigest()[:12]
    return f"{config.partition.scenario}-{kind or config.aggregator.name}-seed-{config.run.seed}-{digest}"


def _named(change: str, places: Mapping[str, str]) -> str:
    """A line of ``differences`` with the variable in place of its folder."""
    before, _, value = change.partition(" -> ")
    for name, folder in places.items():
        if folder and f"{value}/".startswith(f"{folder}/"):
            return f"{before} -> ${name}{value[len(folder) :]}"
    return change
