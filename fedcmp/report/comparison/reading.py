"""A comparison folder as the page needs it: what was asked, every cell that ran, and the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.errors import RunFolderError
from fedcmp.report.files import read_object, read_objects
from fedcmp.report.formatting import is_number

BOUNDS = ("centralized", "local")


class Cell(NamedTuple):
    """One run of the comparison."""

    setting: str
    method: str
    seed: str
    stage: str
    """``tune`` or ``final``."""
    options: Mapping[str, Any]
    status: str
    """``finished`` or ``failed``."""
    line: Mapping[str, Any]
    """All of its line in runs.jsonl."""

    @property
    def finished(self) -> bool:
        """Whether it has results."""
        return self.status == "finished"

    @property
    def loss(self) -> float | None:
        """Test loss in nats per token."""
        value = (self.line.get("test") or {}).get("loss")
        return float(value) if is_number(value) else None


@dataclass(frozen=True)
class Comparison:
    """What a comparison folder holds; what is missing is empty."""

    path: Path
    asked: Mapping[str, Any]
    cells: Sequence[Cell]
    table: Mapping[str, Any]
    """What the study computed: means, deviations, tests."""

    @property
    def reference(self) -> str:
        """The method that others are tested against."""
        return str(self.table.get("reference") or self.asked.get("reference") or "fedcmp")

    @property
    def bounds(self) -> Sequence[str]:
        """What is no rival: the upper and the lower bound."""
        return tuple(self.table.get("bounds") or BOUNDS)

    @cached_property
    def final(self) -> Sequence[Cell]:
        """The cells that the results come from."""
        return [cell for cell in self.cells if cell.stage == "final"]

    @cached_property
    def settings(self) -> list[str]:
        """In the order in which they were run."""
        return list(dict.fromkeys([*self.table.get("settings", {}), *(cell.setting for cell in self.cells)]))

    @cached_property
    def methods(self) -> list[str]:
        """The reference first, then the others, then the bounds."""
        found = list(dict.fromkeys(cell.method for cell in self.cells))
        for rows in self.table.get("settings", {}).values():
            found += [row["method"] for row in rows if row.get("method") not in found]
        rivals = sorted(name for name in found if name not in (self.reference, *self.bounds))
        first = [self.reference] if self.reference in found else []
        return [*first, *rivals, *(name for name in self.bounds if name in found)]

    def of(self, setting: str, method: str, stage: str = "final") -> list[Cell]:
        """The finished cells of one place of the table."""
        return [
            cell
            for cell in self.cells
            if (cell.setting, cell.method, cell.stage) == (setting, method, stage) and cell.finished
        ]

    def losses(self, setting: str, method: str) -> list[float]:
        """Test losses by seed."""
        return [cell.loss for cell in self.of(setting, method) if cell.loss is not None]

    def records(self, cell: Cell) -> list[dict[str, Any]]:
        """The rounds of a cell; none where its folder is gone or lies elsewhere."""
        folder = (self.path / str(cell.line.get("folder") or "none")).resolve()
        return read_objects(folder / "metrics.jsonl") if folder.is_relative_to(self.path.resolve()) else []


def standing(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Orders rows of table.json as the tables are: by the mean over the seeds that all methods have, then those without
    one. Tables of before know means over all of a method's seeds only."""
    shared, mean = row.get("shared", row.get("mean")), row.get("mean")
    value = shared if is_number(shared) else mean
    return not is_number(shared), float(value) if is_number(value) else math.inf


def is_comparison(folder: Path) -> bool:
    """Whether something in the folder says that methods were compared in it."""
    return any((folder / name).is_file() for name in ("compare.json", "runs.jsonl"))


def read_comparison(folder: Path) -> Comparison:
    """All that the page shows but the cells' own folders.

    Raises:
        RunFolderError: a file is there and cannot be read.
    """
    lines = read_objects(folder / "runs.jsonl")
    cells = [_cell(line, folder / "runs.jsonl", number) for number, line in enumerate(lines, 1)]
    asked, table = read_object(folder / "compare.json"), read_object(folder / "table.json")
    wanted = [one for one in cells if _wanted(one, asked) and _seed_wanted(one, asked, table)]
    # a cell that was run again, or chosen anew, has several lines: the last one counts
    last = {(*one[:4], str(one.options) if one.stage == "tune" else ""): one for one in wanted}
    return Comparison(folder, asked, list(last.values()), table)


def _wanted(cell: Cell, asked: Mapping[str, Any]) -> bool:
    """Whether the comparison, as it was last asked for, shows the cell's setting and method."""
    settings, methods = ([one["label"] for one in asked.get(key, ())] for key in ("settings", "methods"))
    bounds = BOUNDS if asked.get("bounds", True) else ()
    return (not settings or cell.setting in settings) and (not methods or cell.method in (*methods, *bounds))


def _seed_wanted(cell: Cell, asked: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    """Whether the table shows the cell's seed: not, where fewer seeds, or none beyond those of all, are asked for now.
    Where there is no table yet, as far as anybody's seeds go."""
    if cell.stage != "final" or not cell.seed.isdigit():
        return True
    rows = table.get("settings", {}).get(cell.setting, [])
    row: Mapping[str, Any] = next((row for row in rows if row.get("method") == cell.method), {})
    known = [int(asked[key]) for key in ("seeds", "extra_seeds") if is_number(asked.get(key))]
    last = row.get("asked", max(known, default=0))
    return not last or int(cell.seed) <= last


def _cell(line: Mapping[str, Any], path: Path, number: int) -> Cell:
    cell = line.get("cell")
    if not isinstance(cell, Mapping) or "method" not in cell:
        raise RunFolderError(f'{path}, line {number}: expected a "cell" with setting, method, options, seed and stage')
    return Cell(
        str(cell.get("setting", "")),
        str(cell["method"]),
        str(cell.get("seed", "")),
        str(cell.get("stage", "final")),
        cell.get("options") or {},
        str(line.get("status", "finished")),
        line,
    )
