"""The identity of a run: one that is in the folder is not run again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.presets import build_aggregator
from fedcmp.config import Config, amend, differences
from fedcmp.runs.train import MAY_CHANGE

DEFAULTS = 1
"""The edition of the config's defaults: a changed default that touches results raises it."""
FORMER = ("partition.clients=8", "data.max_caption_tokens=64")
"""Defaults that have changed, as that edition had them."""
FORMER_FUSE = {"overlap": True, "correlation": 0.9, "refit": False}
"""Defaults of the fuse of Fed-CMP that have changed, as they were."""
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

    A new setting of a new version, and a changed default, leave old runs known.

    Args:
        kind: ``centralized``, ``local``, or empty for a federated run.
        config: of the run, resolved.
        places: variable -> folder: a path in the folder counts as the variable's name and the rest.

    >>> identity("", Config()) == identity("", amend(Config(), ["run.dir=x", "wandb.mode=disabled"]))
    True
    >>> identity("", Config()).rpartition("-")[0], identity("local", Config()).rpartition("-")[0]
    ('domain-fedcmp-seed-0', 'domain-local-seed-0')
    >>> here, there = (amend(Config(), [f"model.tower={folder}/vit"]) for folder in ("/a", "/b"))
    >>> identity("", here, {"MODELS": "/a"}) == identity("", there, {"MODELS": "/b"})
    True
    """
    needs, fuse = build_aggregator(config.aggregator).needs, config.aggregator.fuse
    if "outcome" not in needs:  # before there were outcomes, no method asked; nor was image use looked at
        fuse = {option: value for option, value in fuse.items() if option != "explore"}
    fuse = dict(fuse)
    for option, before in FORMER_FUSE.items() if config.aggregator.name == "fedcmp" else ():
        if (value := fuse.pop(option, getattr(Canonical, option))) != before:
            fuse[option] = value
    config = replace(config, aggregator=replace(config.aggregator, fuse=fuse, image_use=None))
    content = {"it asks for outcomes"} if "outcome" in needs else set[str]()
    content |= {"it weighs by image use"} if "image_use" in needs else set()
    content |= {
        _named(change, places or {}) for change in differences(_former(), config)
        if not any(f"{change.split(':')[0]}.".startswith(f"{part}.") for part in MAY_CHANGE)
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps([DEFAULTS, kind, sorted(content)]).encode()).hexdigest()[:12]
    return f"{config.partition.scenario}-{kind or config.aggregator.name}-seed-{config.run.seed}-{digest}"


@cache
def _former() -> Config:
    return amend(Config(), FORMER)


def _named(change: str, places: Mapping[str, str]) -> str:
    """A line of ``differences`` with the variable in place of its folder."""
    before, _, value = change.partition(" -> ")
    for name, folder in places.items():
        if folder and f"{value}/".startswith(f"{folder}/"):
            return f"{before} -> ${name}{value[len(folder) :]}"
    return change
