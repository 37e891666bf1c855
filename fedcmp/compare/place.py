"""A comparison folder: what was asked, the runs, the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcmp.errors import RunFolderError
from fedcmp.federation.folder import RunFolder, claim
from fedcmp.compare.asked import Study, from_json, to_json
from fedcmp.compare.cells import Jobs


class Place:
    """The places inside a comparison folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = path / "compare.json"
        self.runs = path / "runs.jsonl"
        self.cells = path / "cells"
        self.features = path / "features"
        """Of runs without ``data.cache_dir``, until all have ended."""
        self.tables = {kind: path / f"table.{kind}" for kind in ("md", "csv", "tex", "json")}

    @property
    def name(self) -> str:
        """What the comparison is called, also in W&B."""
        return self.path.resolve().name

    def remembers(self) -> bool:
        """Whether a comparison was begun here."""
        return self.asked.is_file()

    def read(self) -> Study:
        """What was last asked for here.

        Raises:
            RunFolderError: compare.json cannot be read.
            ConfigError: a config in it is not valid any more.
        """
        try:
            content = json.loads(self.asked.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {self.asked}: {error}") from error
        return from_json(content, str(self.asked))

    def write(self, study: Study, jobs: Jobs, command: str, cost: Mapping[str, float] | None = None) -> None:
        """Remembers what is asked for now, and adds what ``encode_features`` has cost to what it had cost before."""
        before = json.loads(self.asked.read_text(encoding="utf-8")) if self.remembers() else {}
        features = before.get("features", {})
        if cost is not None:
            features = {**cost, **{key: features.get(key, 0) + cost[key] for key in ("seconds", "encoded")}}
        grid: dict[str, dict[str, Any]] = {setting: {} for setting in jobs.settings}
        for (setting, method), cells in jobs.grids.items():
            grid[setting][method] = [dict(cell) for cell in cells]
        content = {"name": self.name, "command": command, **to_json(study), "grid": grid, "features": features}
        RunFolder(self.path).write_json(self.asked, content)

    def write_tables(self, tables: Mapping[str, str]) -> None:
        """By kind: md, csv, tex, json."""
        for kind, text in tables.items():
            RunFolder(self.path).write_text(self.tables[kind], text)


def open_place(out: Path | None, stem: str) -> Place:
    """The folder of a comparison: one that was begun, or a new one.

    Args:
        out: the folder that the user named; None: ``runs/compare-<stem>-N``.
        stem: what a folder without a name is called after.

    Raises:
        RunFolderError: it holds something else, or cannot be made.
    """
    if out is not None and Place(out).remembers():
        return Place(out)
    try:
        return Place(claim(out, f"compare-{stem}", number=True).path)
    except RunFolderError as error:
        words = (
            str(error)
            .replace("run folder", "comparison folder")
            .replace("another run.dir or run.name", "another --out")
        )
        raise RunFolderError(words.replace("set run.dir", "set --out")) from error
