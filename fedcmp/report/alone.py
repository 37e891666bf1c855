"""Each client alone (a run of ``fedcmp local``) beside runs of all clients together, on the test samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.evaluation.losses import Scored, own_and_all
from fedcmp.federation.folder import TEST_LOSSES
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
    """Two words, then losses in nats per token, and how much lower than alone, with its paired standard error."""
    sentences: list[str]
    """Of each run of all clients together: for how many clients it is better and worse than they are alone."""


def beside_alone(folders: Sequence[Path]) -> list[Beside]:
    """A table for each local run that has other runs of the same samples and clients beside it; all must be tested.

    Raises:
        RunFolderError: a file cannot be read.
    """
    runs = {path: read_object(path / "summary.json") for path in folders}
    tested = {path: one for path, one in runs.items() if one.get("test") and _has_losses(path, one)}
    locals_ = [path for path, one in tested.items() if one["method"] == "local"]
    splits = {path: read_object(path / "split.json") for path in tested} if locals_ else {}
    found = []
    for alone in locals_:
        others = [path for path in tested if path not in locals_]
        same = [path for path in others if all(splits[path].get(key) == splits[alone].get(key) for key in SHARED)]
        if same:
            found.append(_table(alone, tested[alone]["clients"], {path: tested[path] for path in same}))
    return found


def _has_losses(path: Path, summary: Mapping[str, Any]) -> bool:
    local = summary.get("method") == "local"
    folders = [path / "clients" / client for client in summary["clients"]] if local else [path]
    return all((folder / TEST_LOSSES).is_file() for folder in folders)


def _table(alone: Path, clients: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> Beside:
    methods = Counter(one["method"] for one in others.values())
    names = [one["method"] if methods[one["method"]] == 1 else one["name"] for one in others.values()]
    rows = [[one["name"], listed(one["domains"], most=3), *one["test"].values()] for one in clients.values()]
    sentences = []
    for name, (path, other) in zip(names, others.items(), strict=True):
        verdicts, together = Counter[str](), _scored(path)
        for row, (client, one) in zip(rows, clients.items(), strict=True):
            gain, verdict = _gain(_scored(alone / "clients" / client), together, one["domains"])
            row += [*own_and_all(other["test"]["domains"], one["domains"]).values(), gain]
            verdicts[verdict] += 1
        counts = ", ".join(f"{verdict} for {verdicts[verdict]}" for verdict in ("better", "worse", "undecided"))
        sentences.append(f"{name}, each client on its own domains, beside alone: {counts} (two standard errors)")
    columns = [f"{name}: {part}" for name in names for part in ("own", "all", "gain on own")]
    header = ["client", "its domains", "alone: own", "alone: all", *columns]
    return Beside((alone, *others), header, rows, sentences)


def _gain(alone: Scored, together: Scored, domains: Collection[str]) -> tuple[str | None, str]:
    """How much lower the loss is together, with its standard error over the same pictures; and what that means.

    >>> def scored(*loss): return Scored(["a"] * 4, [0, 1, 2, 3], [1.0] * 4, list(loss), [0.0] * 4)
    >>> _gain(scored(1.0, 1.0, 3.0, 3.0), scored(1.0, 1.0, 1.0, 1.0), ["a"])
    ('+1.000 ± 0.577', 'undecided')
    >>> _gain(scored(1.0, 2.0, 3.0, 3.0), scored(1.0, 1.0, 1.0, 1.0), ["a"])
    ('+1.250 ± 0.479', 'better')
    """
    rises = [theirs - ours for theirs, ours in zip(alone.loss, together.loss, strict=True)]
    gain, error = together.per_token(rises, domains)
    if gain is None or error is None:
        return None if gain is None else f"{gain:+.3f}", "undecided"
    verdict = "undecided" if abs(gain) <= 2 * error else "better" if gain > 0 else "worse"
    return f"{gain:+.3f} ± {error:.3f}", verdict


def _scored(folder: Path) -> Scored:
    return Scored(**read_object(folder / TEST_LOSSES))
