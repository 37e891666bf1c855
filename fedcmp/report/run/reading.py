"""The content of a run folder, as the page needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fedcmp.errors import RunFolderError
from fedcmp.report.files import read_object, read_objects, read_settings, read_text
from fedcmp.report.formatting import is_number

_CLIENT = re.compile(r"client/(\d+)/")


def refuse_site(folder: Path, summary: Mapping[str, Any]) -> None:
    """A site's part of a run has no results to show.

    Raises:
        RunFolderError: the folder is one.
    """
    if site := summary.get("site"):
        raise RunFolderError(
            f"{folder} is what the site {site} has of a run over sites, for `fedcmp caption`; the coordinator has its "
            "results, and audit.jsonl says what left this site"
        )


class Run:
    """The content of a run folder; what is missing is empty.

    Raises:
        RunFolderError: a file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = read_object(path / "summary.json")
        self.records = read_objects(path / "metrics.jsonl")
        """One a round."""
        self.split = read_object(path / "split.json")
        self.sites = read_object(path / "sites.json")
        """Of a run over sites, how it was asked for."""
        self.config = read_text(path / "config.yaml")
        self.settings = read_settings(self.config, path / "config.yaml")
        self.examples = read_objects(path / "captions.jsonl")
        """Captioned test pictures."""

    @cached_property
    def kind(self) -> str:
        """``federated``, ``centralized``, ``local``, or ``unknown`` before the first round."""
        method = self.summary.get("method")
        if method in ("centralized", "local"):
            return str(method)
        if any("client" in one for one in self.records):
            return "local"
        if self.clients or method or any("privacy/epsilon" in one for one in self.records):
            return "federated"
        return "centralized" if any("train/loss" in one for one in self.records) else "unknown"

    @property
    def method(self) -> str:
        """The method's name, or ``centralized`` or ``local``."""
        if self.kind in ("centralized", "local"):
            return self.kind
        return str(self.summary.get("method") or self.setting("aggregator", "name") or "unknown")

    @property
    def state(self) -> str:
        """``finished``, ``budget``, ``stopped`` or ``failed``; ``running`` where no summary says how it ended."""
        return str(self.summary.get("exit", "running"))

    @cached_property
    def clients(self) -> list[int]:
        """All that took part in a round so far."""
        return sorted({int(found[1]) for one in self.records for key in one if (found := _CLIENT.match(key))})

    def called(self, client: int | str) -> str:
        """The name of a client, or ``client 3`` where it has a number only."""
        names, place = self.split.get("names", ()), int(client)
        return f"client {client}" if place >= len(names) or names[place] == str(client) else str(names[place])

    @cached_property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """The records after the start."""
        return [one for one in self.records if one.get("round")]

    @property
    def tested(self) -> Mapping[str, Any]:
        """The measures on the test samples at the end; may be empty."""
        return self.summary.get("test") or {}

    @property
    def protection(self) -> Mapping[str, str]:
        """Of a run over sites, what its coordinator sees of a site; may be empty."""
        return self.summary.get("protection") or {}

    def setting(self, *keys: str) -> Any:
        """A setting, or None: ``run.setting("federation", "rounds")``."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Rounds and values of a record where it is a number."""
        return series(self.records, key)

    def parts(self, key: str) -> list[str]:
        """The names after ``key/`` in the records' keys: domains, layers. Histograms are left out."""
        names = dict.fromkeys(name for one in self.records for name in one if name.startswith(f"{key}/"))
        return [name.removeprefix(f"{key}/") for name in names if not name.endswith("/histogram")]


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Rounds and values of one record where it is a number."""
    pairs = [(int(one.get("round", 0)), float(one[key])) for one in records if is_number(one.get(key))]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def is_run(folder: Path) -> bool:
    """Whether a run began in the folder."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json"))
