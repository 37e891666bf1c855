"""Each client alone (a run of ``fedcmp local``) beside runs of all clients together, on the test samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.evaluation.losses import own_and_all
from fedcmp.report.files import read_object
from fedcmp.report.formatting import listed

SHARED = ("hash", "records")
"""What split.json must have alike: the samples of each client, and all records."""


class Beside(NamedTuple):
    """A table: test losses of each client, on its own domains and on all."""

    folders: tuple[Path, ...]
    """The local run, then the others."""
    header: list[str]
    rows: list[list[Any]]
    """Two words, then losses in nats per token."""
    sentences: list[str]
    """Of each run of all clients together: for how many clients it is better than they are alone."""


def beside_alone(folders: Sequence[Path]) -> list[Beside]:
    """A table for each local run that was tested and has other runs of the same samples and clients beside it.

    Raises:
        RunFolderError: a file cannot be read.
    """
    runs = {path: read_object(path / "summary.json") for path in folders}
    tested = {path: one for path, one in runs.items() if one.get("test")}
    locals_ = [path for path, one in tested.items() if _alone(one)]
    splits = {path: read_object(path / "split.json") for path in tested} if locals_ else {}
    found = []
    for alone in locals_:
        others = [path for path, one in tested.items() if one["method"] != "local"]
        same = [path for path in others if all(splits[path].get(key) == splits[alone].get(key) for key in SHARED)]
        if same:
            found.append(_table(alone, tested[alone], {path: tested[path] for path in same}))
    return found


def _alone(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Its clients, if it is a local run that recorded the test losses of each."""
    clients: dict[str, Any] = summary["clients"] if summary.get("method") == "local" else {}
    return clients if all("test" in one for one in clients.values()) else {}


def _table(alone: Path, summary: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> Beside:
    clients = _alone(summary).values()
    methods = Counter(one["method"] for one in others.values())
    names = [one["method"] if methods[one["method"]] == 1 else one["name"] for one in others.values()]
    rows = [[one["name"], listed(one["domains"], most=3), *one["test"].values()] for one in clients]
    sentences = []
    for name, other in zip(names, others.values(), strict=True):
        better = 0
        for row, one in zip(rows, clients, strict=True):
            found = own_and_all(other["test"]["domains"], one["domains"])
            better += found["own"] is not None and found["own"] < one["test"]["own"]
            row += found.values()
        sentences.append(f"{name}: better than alone on its own domains for {better} of {len(rows)} clients")
    header = ["client", "its domains", *(f"{name}: {what}" for name in ("alone", *names) for what in ("own", "all"))]
    return Beside((alone, *others), header, rows, sentences)
