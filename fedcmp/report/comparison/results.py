"""A comparison folder: what was asked, the runs that ended, the table. ``fedcmp compare`` and the page read it here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from fedcmp.errors import RunFolderError
from fedcmp.report.files import read_object, read_objects, read_text

BOUNDS = ("centralized", "local")
"""Upper and lower bound: no methods."""
TUNE, FINAL = "tune", "final"


class Cell(NamedTuple):
    """The place of a run in a comparison."""

    setting: str
    method: str
    """A method's label, ``centralized`` or ``local``."""
    options: dict[str, Any]
    """What the grid sets: override key -> value."""
    seed: int
    stage: str
    """``tune``: chooses options, by the validation loss; ``final``: is reported, by the test loss."""

    def key(self) -> tuple[str, ...]:
        """Cells of one key answer the same question; a final cell does with any options."""
        options = json.dumps(self.options, sort_keys=True) if self.stage == TUNE else ""
        return (self.setting, self.method, str(self.seed), self.stage, options)


class Result(NamedTuple):
    """A run that ended."""

    cell: Cell
    record: Mapping[str, Any]
    """All of its line in runs.jsonl."""

    @property
    def id(self) -> str:
        """Names what is computed."""
        return Path(self.record["folder"]).name

    @property
    def finished(self) -> bool:
        """Whether it has losses; else it has an ``error``."""
        return bool(self.record["status"] == "finished")

    @property
    def test(self) -> Mapping[str, Any]:
        """What was measured on the test samples; ``loss`` in nats per token."""
        return self.record.get("test") or {}

    def measured(self, *path: str) -> float | None:
        """A number of the line: ``result.measured("seconds", "total")``."""
        value: Any = self.record
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else float(value)


def read_results(path: Path) -> list[Result]:
    """The lines of a runs.jsonl, without a last one that a kill cut or a run is still writing.

    Raises:
        RunFolderError: the file cannot be read, or a line is no record of a run.
    """
    results = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            results.append(Result(Cell(**record["cell"]), record))
            record["status"], record["folder"]
        except (ValueError, TypeError, KeyError) as error:
            expected = "expected a run with cell, status and folder"
            raise RunFolderError(f"{path}, line {number}: {expected}: {error!r}") from error
    return results


class Comparison:
    """A comparison folder; missing files are empty.

    Raises:
        RunFolderError: a file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = read_object(path / "compare.json")
        self.table = read_object(path / "table.json")
        last = {one.cell.key(): one for one in read_results(path / "runs.jsonl")}
        asked_for = self.table.get("runs", {})
        self.results = [
            one
            for one in last.values()
            if not asked_for or one.id in asked_for.get(one.cell.setting, {}).get(one.cell.method, ())
        ]
        """The last of each cell, without runs of what was asked for earlier."""

    @property
    def grid_sizes(self) -> list[int]:
        """Tuning runs of each method in each setting; 0 where there is nothing to choose."""
        grids = [len(options) for grid in self.asked.get("grid", {}).values() for options in grid.values()]
        return [runs * self.asked.get("tuning_seeds", 1) if runs > 1 else 0 for runs in grids]

    @property
    def missing(self) -> int:
        """Runs that were asked for and have not ended, at least: extra seeds and those that settings share apart."""
        asked = self.asked
        methods = len(asked.get("methods", ())) + len(BOUNDS) * bool(asked.get("bounds", True))
        seeds, tuning = asked.get("seeds", 0), sum(self.grid_sizes)
        final = sum(one.cell.stage == FINAL and one.cell.seed <= seeds for one in self.results)
        tuned = sum(one.cell.stage == TUNE for one in self.results)
        rows = len(asked.get("settings", ())) * methods
        return max(0, rows * seeds - final) + max(0, tuning - tuned)

    @property
    def reference(self) -> str:
        """The method that others are tested against."""
        return str(self.table.get("reference") or self.asked.get("reference") or "fedcmp")

    @property
    def name(self) -> str:
        """Its name, as a title."""
        return str(self.asked.get("name") or self.path.resolve().name)

    @cached_property
    def settings(self) -> list[str]:
        """In the order in which they were run."""
        return list(dict.fromkeys([*self.table.get("settings", {}), *(one.cell.setting for one in self.results)]))

    @cached_property
    def methods(self) -> list[str]:
        """The reference first, then the others as they were asked for, then the bounds."""
        asked = [one["label"] for one in self.asked.get("methods", ())]
        found = {one.cell.method for one in self.results} | {
            row["method"] for setting in self.settings for row in self.rows(setting)
        }
        place = {name: number for number, name in enumerate([*asked, *sorted(found - set(asked))])}
        return sorted(found, key=lambda one: (one in BOUNDS, one != self.reference, place[one]))

    def rows(self, setting: str) -> list[dict[str, Any]]:
        """The rows of table.json; empty before it was written."""
        return list(self.table.get("settings", {}).get(setting, ()))

    def of(self, setting: str | None, method: str, stage: str = FINAL) -> list[Result]:
        """The finished runs of a method in a setting (None: in all)."""
        found = [one for one in self.results if one.finished and setting in (None, one.cell.setting)]
        return [one for one in found if (one.cell.method, one.cell.stage) == (method, stage)]

    def tuning(self, setting: str, method: str) -> list[tuple[dict[str, Any], float]]:
        """The options that have finished on all tuning seeds, and their mean validation loss."""
        found: dict[str, list[Result]] = {}
        for one in self.of(setting, method, TUNE):
            found.setdefault(json.dumps(one.cell.options, sort_keys=True), []).append(one)
        seeds = self.asked.get("tuning_seeds", 1)
        done = [runs for runs in found.values() if len(runs) == seeds]
        return [(runs[0].cell.options, fmean(run.record["val_loss"] for run in runs)) for runs in done]

    def losses(self, setting: str, method: str) -> list[float]:
        """Test losses by seed."""
        return [one.test["loss"] for one in self.of(setting, method) if "loss" in one.test]

    def rounds(self, result: Result) -> list[dict[str, Any]]:
        """The metrics of a run by round; none where its folder is gone or is elsewhere."""
        folder = (self.path / str(result.record["folder"])).resolve()
        return read_objects(folder / "metrics.jsonl") if folder.is_relative_to(self.path.resolve()) else []


def is_comparison(folder: Path) -> bool:
    """Whether methods were compared in the folder."""
    return any((folder / name).is_file() for name in ("compare.json", "runs.jsonl"))
