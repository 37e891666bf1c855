"""The results as tables of words and numbers, before they are drawn in any form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedcmp.report.formatting import p_value
from fedcmp.study.cells import Jobs
from fedcmp.study.results import MEASURES, Overall, Results, Row
from fedcmp.study.statistics import Paired

Entry = str | int | float | None
NO_USE = "the pictures do not matter (image use below 2 % of the loss, or below its standard error)"


class Sheet(NamedTuple):
    """One table."""

    title: str
    header: list[str]
    rows: list[list[Entry]]
    """None: nothing to say."""
    notes: list[str]
    best: int | None = None
    """The row that is best; None: unknown."""


def sheets(jobs: Jobs, found: Results) -> list[Sheet]:
    """A table of the losses in each setting, one of what else was measured there, and one of all settings, where
    there is something to compare."""
    made = []
    for setting, rows in found.settings.items():
        made.append(_losses(jobs, setting, rows))
        if any(row.measures for row in rows):
            made.append(_measures(jobs, setting, rows))
    if len(found.settings) > 1 and (len(jobs.methods) > 1 or jobs.bounds):
        made.append(_overall(jobs, found.overall))
    return made


def legend(jobs: Jobs) -> list[str]:
    """How to read the tables."""
    study = jobs.study
    tuned = f"tuned in {study.budget} runs a setting, on another seed, by validation loss"
    lines = ["Test loss in nats per token, lower is better"]
    if study.seeds > 1:
        lines[0] += f": mean and sample standard deviation (sd) over seeds 1 to {study.seeds}."
    else:
        lines[0] += ", of one seed: no sd and no p can be had."
    lines.append(f"Every method and bound was {tuned if study.budget > 1 else 'run as CONFIG says, not tuned'}.")
    if study.extra_seeds > study.seeds:
        lines.append(
            f"{study.reference}, its {study.rivals} strongest rivals by seeds 1 to {study.seeds}, and the bounds: up "
            f"to seed {study.extra_seeds}."
        )
    if jobs.bounds:
        lines.append(
            "recovered: (method - local) / (centralized - local) of the loss, by seed, then the mean; of image use: "
            "the same of the image use, the loss with another picture of the domain minus that with the right one."
        )
    rivals = len(jobs.methods) - 1
    if rivals:
        lines.append(
            f"difference: method - {study.reference}, over the seeds that both have; p: paired t-test of it, two-sided,"
            f" Holm-corrected over {rivals} rival{'s' * (rivals > 1)}; w/t/l: how often it was better, equal, worse."
        )
        several, last = study.seeds > 1, study.seeds
        lines.append(f"rank: mean rank on seed{'s 1 to' * several} {last}; a failed run is last.")
        how = "loss; a failed run is last."
        if several:
            how = f"mean over those of seeds 1 to {last} that all methods have, whoever has more; "
            how += "who failed on one is last."
        lines.append(f"Order, bold name and best in: by the {how}")
    return lines


def _losses(jobs: Jobs, setting: str, rows: list[Row]) -> Sheet:
    rivals, bounds = len(jobs.methods) > 1, bool(jobs.bounds)
    header = ["method", "test loss", "sd", "seeds"]
    header += ["recovered", "of image use"] if bounds else []
    header += ["rank", "difference", "p", "w/t/l"] if rivals else []
    header.append("chosen")
    table: list[list[Entry]] = []
    for row in rows:
        line: list[Entry] = [_name(jobs, row), row.mean, row.deviation, _seeds(row)]
        line += [row.recovered, row.recovered_use] if bounds else []
        line += [row.rank, *_against(row.against, row.p_holm)] if rivals else []
        table.append([*line, describe_options(row.chosen) if row.chosen else None])
    notes = [f"{row.method} failed: {_line(row.error)}" for row in rows if row.error]
    if blind := [row.method for row in rows if row.ignores_pictures]:
        notes.append(f"{NO_USE}: {', '.join(blind)}")
    best = next((place for place, row in enumerate(rows) if not row.bound and row.shared is not None), None)
    return Sheet(setting, header, table, notes, best)


def _measures(jobs: Jobs, setting: str, rows: list[Row]) -> Sheet:
    titles = [title for title in MEASURES if any(title in row.measures for row in rows)]
    table: list[list[Entry]] = [[_mark(jobs, row.method), *map(row.measures.get, titles)] for row in rows]
    return Sheet(f"{setting}: what else was measured, means over seeds", ["method", *titles], table, [])


def _overall(jobs: Jobs, rows: list[Overall]) -> Sheet:
    rivals, bounds = len(jobs.methods) > 1, bool(jobs.bounds)
    header = ["method", "rank", "best in", "recovered", "of image use", "difference", "p", "w/t/l"]
    table: list[list[Entry]] = []
    for row in rows:
        name = _failures(_mark(jobs, row.method), row.failed, row.asked, "runs")
        best = f"{row.best} of {len(jobs.settings)}"
        table.append([name, row.rank, best, row.recovered, row.recovered_use, *_against(row.against, row.p_holm)])
    left_out = {*([] if bounds else [3, 4]), *([] if rivals else [1, 2, 5, 6, 7])}
    keep = [place for place in range(len(header)) if place not in left_out]
    pick = [[line[place] for place in keep] for line in table]
    notes = ["difference and p over all (setting, seed) pairs; recovered: mean over settings."]
    first = 0 if rows[0].rank is not None else None
    return Sheet("all settings", [header[place] for place in keep], pick, notes, first)


def describe_options(options: Mapping[str, Any]) -> str:
    """What the grid set, for people.

    >>> describe_options({"optimizer.lr": 0.02, "aggregator.server.lr": 1.3})
    'lr 0.02, server.lr 1.3'
    >>> describe_options({"centralized.batch_sizes": [16]})
    'batch 16'
    """
    short = {"optimizer.lr": "lr", "centralized.batch_sizes": "batch"}
    parts = []
    for key, value in options.items():
        value = value[0] if isinstance(value, list) else value
        parts.append(f"{short.get(key, key.removeprefix('aggregator.'))} {value:g}")
    return ", ".join(parts)


def _name(jobs: Jobs, row: Row) -> str:
    return _failures(_mark(jobs, row.method), len(row.failed), row.asked, "seeds")


def _mark(jobs: Jobs, method: str) -> str:
    return f"{method} (reference)" if method == jobs.study.reference and len(jobs.methods) > 1 else method


def _failures(name: str, failed: int, asked: int, what: str) -> str:
    return f"{name} [failed {failed} of {asked} {what}]" if failed else name


def _seeds(row: Row) -> str:
    return f"{len(row.losses)}" if len(row.losses) == row.asked else f"{len(row.losses)} of {row.asked}"


def _against(against: Paired | None, p_holm: float | None) -> list[Entry]:
    if against is None or against.difference is None:
        return [None, None, None]
    p = None if p_holm is None else p_value(p_holm)
    return [f"{against.difference:+.3f}", p, f"{against.wins}/{against.ties}/{against.losses}"]


def _line(error: str | None) -> str:
    first = (error or "").splitlines()[0] if error else ""
    return first if len(first) <= 200 else f"{first[:197]}..."
