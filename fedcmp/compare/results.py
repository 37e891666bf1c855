"""From records to what the tables say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.compare.cells import Jobs
from fedcmp.compare.grid import Options
from fedcmp.compare.schedule import Records, chosen, favoured, gave_up
from fedcmp.compare.statistics import Paired, deviation, holm, mean_ranks, paired, recovered


def _at(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def find(test: Mapping[str, Any]) -> float | None:
        value: Any = test
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return float(value) if value is not None else None

    return find


MEASURES = {
    "worst domain": _at("worst_domain", "loss"),
    "image use": _at("image_use"),
    "token accuracy": _at("token_accuracy"),
    "CIDEr": _at("cider"),
    "yes/no right": _at("probe", "accuracy"),
    "digits named": _at("digits_named"),
}
"""What is shown beside the loss, where the data allow it to be measured: title -> where it stands in ``test``."""


class Row(NamedTuple):
    """One method, or bound, in one setting."""

    method: str
    bound: bool
    asked: int
    """On how many seeds it is to be reported."""
    losses: dict[int, float]
    """Seed -> test loss, of the runs that finished."""
    failed: frozenset[int]
    """The seeds on which it failed; all, where every tuning run did."""
    error: str | None
    """Of its first failed run."""
    chosen: Options | None
    """The options that its tuning chose."""
    mean: float | None
    """Of all its losses."""
    shared: float | None
    """Of those on the seeds that all methods have, by which methods are ordered; None: it failed on one of seeds 1 to
    N, or nothing is shared yet."""
    deviation: float | None
    recovered: float | None
    """Share of the way from local to centralized, in loss."""
    recovered_use: float | None
    """The same in image use; None where centralized makes no use of pictures, too."""
    rank: float | None
    """Mean over the seeds that all methods have."""
    against: Paired | None
    """Against the reference; None for itself and for bounds."""
    p_holm: float | None
    measures: dict[str, float]
    """Means over seeds."""
    uses: dict[int, float]
    """Seed -> image use, of the runs that finished."""
    ignores_pictures: bool
    """Its image use, the mean over seeds, is about zero."""


class Overall(NamedTuple):
    """One method over all settings."""

    method: str
    rank: float | None
    """Mean over (setting, seed)."""
    best: int
    """In how many settings its mean loss is the lowest, on the seeds that all methods have."""
    recovered: float | None
    """Mean over settings; so is the next."""
    recovered_use: float | None
    against: Paired | None
    """Against the reference, every (setting, seed) a pair."""
    p_holm: float | None
    failed: int
    asked: int


class Results(NamedTuple):
    """Everything that a comparison found."""

    settings: dict[str, list[Row]]
    """Best first; centralized before and local after all others."""
    overall: list[Overall]


def results(jobs: Jobs, records: Records) -> Results:
    """What is known so far."""
    settings = {setting: _setting(jobs, setting, records) for setting in jobs.settings}
    ranks = mean_ranks([block for rows in settings.values() for block in _blocks(jobs, rows)])
    overall = [_overall(jobs, method, list(settings.values()), ranks.get(method)) for method in jobs.methods]
    adjusted = holm({row.method: row.against.p for row in overall if row.against is not None})
    overall = [row._replace(p_holm=adjusted.get(row.method)) for row in overall]
    return Results(settings, sorted(overall, key=lambda row: _or_last(row.rank)))


def _overall(jobs: Jobs, method: str, settings: list[list[Row]], rank: float | None) -> Overall:
    rows = [next(row for row in rows if row.method == method) for rows in settings]
    against = None
    if method != jobs.study.reference:
        references = [next(row for row in rows if row.method == jobs.study.reference) for rows in settings]
        against = paired([row.losses for row in rows], [row.losses for row in references])
    parts, uses = [row.recovered for row in rows], [row.recovered_use for row in rows]
    leaders = [next(row for row in rows if not row.bound) for rows in settings]
    return Overall(
        method,
        rank,
        sum(leader.method == method and leader.shared is not None for leader in leaders),
        None if None in parts else _mean(parts),
        None if None in uses else _mean(uses),
        against,
        None,
        sum(len(row.failed) for row in rows),
        sum(row.asked for row in rows),
    )


def _setting(jobs: Jobs, setting: str, records: Records) -> list[Row]:
    extra = favoured(jobs, setting, records) if jobs.study.extra_seeds else set()
    rows = {one: _row(jobs, setting, one, records, one in extra) for one in [*jobs.bounds, *jobs.methods]}
    ranks = mean_ranks(_blocks(jobs, list(rows.values())))
    reference = rows[jobs.study.reference].losses
    shared = _shared(jobs, [rows[name] for name in jobs.methods])
    for name in jobs.methods:
        row = rows[name]._replace(rank=ranks.get(name), shared=shared.get(name))
        if jobs.bounds:
            row = _recovered(row, rows["local"], rows["centralized"])
        if name != jobs.study.reference:
            row = row._replace(against=paired([row.losses], [reference]))
        rows[name] = row
    adjusted = holm({name: row.against.p for name, row in rows.items() if row.against is not None})
    place = {"centralized": 0, "local": 2}
    return sorted(
        (row._replace(p_holm=adjusted.get(name)) for name, row in rows.items()),
        key=lambda row: (place[row.method] if row.bound else 1, _or_last(row.shared), _or_last(row.mean)),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None without any."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _recovered(row: Row, local: Row, centralized: Row) -> Row:
    """With its shares of the way between the bounds; of image use more is better."""
    low, high, own = ({seed: -use for seed, use in one.uses.items()} for one in (local, centralized, row))
    use = None if centralized.ignores_pictures else recovered(own, low, high)
    return row._replace(recovered=recovered(row.losses, local.losses, centralized.losses), recovered_use=use)


def _row(jobs: Jobs, setting: str, method: str, records: Records, extra: bool) -> Row:
    """Without what needs other rows."""
    asked = jobs.study.extra_seeds if extra else jobs.study.seeds
    options, error = chosen(jobs, setting, method, records), gave_up(jobs, setting, method, records)
    runs = {}
    if options is not None:
        ids = {seed: jobs.final(setting, method, options, seed).id for seed in range(1, asked + 1)}
        runs = {seed: records[id_] for seed, id_ in ids.items() if id_ in records}
    tests = {seed: run["test"] for seed, run in runs.items() if run["status"] == "finished"}
    losses = {seed: float(test["loss"]) for seed, test in tests.items()}
    failed = frozenset(range(1, asked + 1) if error is not None else runs.keys() - losses.keys())
    if runs and failed:
        error = str(runs[min(failed)]["error"])
    whole = {title: _mean(find(test) for test in tests.values()) for title, find in MEASURES.items()}
    measures = {title: value for title, value in whole.items() if value is not None}
    uses = {seed: use for seed, test in tests.items() if (use := _at("image_use")(test)) is not None}
    judged = {key: _mean(_at(key)(test) for test in tests.values()) for key in ("loss", "image_use", "image_use_se")}
    mean = statistics.fmean(losses.values()) if losses else None
    spread = deviation(list(losses.values()))
    return Row(
        method, method in jobs.bounds, asked, losses, failed, error, options, mean, None, spread,
        recovered=None, recovered_use=None, rank=None, against=None, p_holm=None, measures=measures, uses=uses,
        ignores_pictures=ignores_pictures(judged),
    )  # fmt: skip


def _shared(jobs: Jobs, methods: list[Row]) -> dict[str, float]:
    """Means over the same seeds for all: extra seeds of some may be easier ones. Who failed on one of seeds 1 to N must
    not leave the others that seed less, nor gain by it: it has no such mean, unless all have failed on one."""
    seeds = range(1, jobs.study.seeds + 1)
    known = [row for row in methods if row.losses]
    whole = [row for row in known if not row.failed.intersection(seeds)] or known
    common = [seed for seed in seeds if all(seed in row.losses for row in whole)]
    return {row.method: statistics.fmean(row.losses[seed] for seed in common) for row in whole} if common else {}


def _blocks(jobs: Jobs, rows: list[Row]) -> list[dict[str, float | None]]:
    """Of every seed that all methods are to have and that all have run, finished or failed."""
    methods = [row for row in rows if not row.bound]
    seeds = range(1, jobs.study.seeds + 1)
    complete = [seed for seed in seeds if all(seed in row.losses or seed in row.failed for row in methods)]
    return [{row.method: row.losses.get(seed) for row in methods} for seed in complete]


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value
