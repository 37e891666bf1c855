"""From the runs of a comparison to the numbers of its tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from fedcmp.compare.grid import Options
from fedcmp.compare.jobs import Jobs
from fedcmp.compare.schedule import Results, favoured, tuned, wanted
from fedcmp.compare.statistics import Key, Paired, deviation, holm, mean_ranks, paired, recovered
from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.report.comparison.results import BOUNDS
from fedcmp.report.summary import quality

Rows = dict[str, "Row"]
"""By method."""


class Row(NamedTuple):
    """One method, or bound, in one setting; or one method over all settings, where a pair is a (setting, seed)."""

    method: str
    asked: int
    """How many runs are to be reported."""
    losses: dict[Key, float]
    """Seed, or (setting, seed) -> test loss, of the runs that finished."""
    failed: frozenset[Key]
    """Where it failed; everywhere, where every tuning run did."""
    uses: dict[Key, float]
    """The image use of the runs that finished."""
    error: str | None = None
    """Of its first failed run."""
    chosen: Options | None = None
    """The options that its tuning chose."""
    mean: float | None = None
    """Of all its losses."""
    deviation: float | None = None
    measures: dict[str, float] = {}  # noqa: RUF012
    """Key of a metric -> mean over seeds of what was measured beside the loss."""
    ignores_pictures: bool | None = None
    """Its image use, the mean over seeds, is about zero."""
    shared: float | None = None
    """Mean loss on the seeds that all methods have, by which methods are ordered; None: it failed on one of seeds 1 to
    N, or nothing is shared yet."""
    recovered: float | None = None
    """Share of the way from local to centralized, in loss; over all settings: the mean over settings."""
    recovered_use: float | None = None
    """The same in image use; None where centralized makes no use of pictures, too."""
    rank: float | None = None
    """Mean over the pairs that all methods have."""
    against: Paired | None = None
    """Against the reference; None for itself and for bounds."""
    p_holm: float | None = None
    best: int | None = None
    """In how many settings its mean loss is the lowest, on the seeds that all methods have; None in one setting."""

    @property
    def is_bound(self) -> bool:
        """Whether it is no method."""
        return self.method in BOUNDS


class Found(NamedTuple):
    """All numbers of a comparison."""

    settings: dict[str, list[Row]]
    """Best first; centralized before and local after all others."""
    overall: list[Row]
    runs: dict[str, dict[str, list[str]]]
    """Setting -> entrant -> ids of the runs, to tune and final, that have ended and belong to what is asked for."""


def evaluate(jobs: Jobs, results: Results) -> Found:
    """The numbers so far."""
    settings = {setting: _setting(jobs, setting, results) for setting in jobs.settings}
    leaders = [next(row for row in rows if not row.is_bound) for rows in settings.values()]
    overall: Rows = {}
    for name in jobs.methods:
        own = {setting: next(row for row in rows if row.method == name) for setting, rows in settings.items()}
        overall[name] = Row(
            name,
            asked=sum(row.asked for row in own.values()),
            losses={(setting, seed): loss for setting, row in own.items() for seed, loss in row.losses.items()},
            failed=frozenset((setting, seed) for setting, row in own.items() for seed in row.failed),
            uses={},
            recovered=_mean_of_all(row.recovered for row in own.values()),
            recovered_use=_mean_of_all(row.recovered_use for row in own.values()),
            best=sum(leader.method == name and leader.shared is not None for leader in leaders),
        )
    seeds = range(1, jobs.study.seeds + 1)
    rows = _judge(overall, [(setting, seed) for setting in settings for seed in seeds], jobs.study.reference)
    runs: dict[str, dict[str, list[str]]] = {setting: {one: [] for one in jobs.entrants} for setting in jobs.settings}
    for job in wanted(jobs, results):
        if job.id in results:
            runs[job.cell.setting][job.cell.method].append(job.id)
    return Found(settings, sorted(rows.values(), key=lambda row: (_or_last(row.rank), _behind(row))), runs)


def _behind(row: Row) -> float:
    """How far a method is behind the reference; the reference itself, and what has no pair with it: 0."""
    return (row.against.difference if row.against else None) or 0.0


def _setting(jobs: Jobs, setting: str, results: Results) -> list[Row]:
    extra = favoured(jobs, setting, results)
    rows = {one: _row(jobs, setting, one, results, one in extra) for one in jobs.entrants}
    seeds = range(1, jobs.study.seeds + 1)
    rows |= _judge({name: rows[name] for name in jobs.methods}, seeds, jobs.study.reference)
    shared = _shared([rows[name] for name in jobs.methods], seeds)
    for name in jobs.methods:
        row = rows[name]
        if jobs.bounds:
            local, centralized = rows["local"], rows["centralized"]
            low, high, own = ({seed: -use for seed, use in one.uses.items()} for one in (local, centralized, row))
            row = row._replace(
                recovered=recovered(row.losses, local.losses, centralized.losses),
                recovered_use=None if centralized.ignores_pictures else recovered(own, low, high),
            )
        rows[name] = row._replace(shared=shared.get(name))
    place = {"centralized": 0, "local": 2}
    return sorted(rows.values(), key=lambda row: (place.get(row.method, 1), _or_last(row.shared), _or_last(row.mean)))


def _row(jobs: Jobs, setting: str, entrant: str, results: Results, extra: bool) -> Row:
    """Without the numbers that need other rows."""
    asked = jobs.study.extra_seeds if extra else jobs.study.seeds
    seeds, (options, error) = range(1, asked + 1), tuned(jobs, setting, entrant, results)
    ids = {} if options is None else {seed: jobs.final(setting, entrant, options, seed).id for seed in seeds}
    runs = {seed: results[id_] for seed, id_ in ids.items() if id_ in results}
    done = {seed: run for seed, run in runs.items() if run.finished}
    failed = frozenset[Key](seeds if error is not None else runs.keys() - done.keys())
    if runs and failed:
        error = next(str(run.record["error"]) for run in runs.values() if not run.finished)

    def by_seed(key: str) -> dict[Key, float]:
        return {seed: value for seed, run in done.items() if (value := run.measured("test", key)) is not None}

    found = [quality(run.test) for run in done.values()]
    keys = dict.fromkeys(key for one in found for key in one if key != "test/loss")
    judged = {key: _mean(by_seed(key).values()) for key in ("loss", "image_use", "image_use_se")}
    losses = by_seed("loss")
    return Row(
        entrant,
        asked,
        losses,
        failed,
        by_seed("image_use"),
        error=error,
        chosen=options,
        mean=_mean(losses.values()),
        deviation=deviation(list(losses.values())),
        measures={key: statistics.fmean(one[key][0] for one in found if key in one) for key in keys},
        ignores_pictures=ignores_pictures(judged),
    )


def _judge(rows: Rows, keys: Iterable[Key], reference: str) -> Rows:
    """Adds ranks, over the keys that all have run, finished or failed, and tests against the reference."""
    complete = [key for key in keys if all(key in row.losses or key in row.failed for row in rows.values())]
    ranks = mean_ranks([{name: row.losses.get(key) for name, row in rows.items()} for key in complete])
    tests = {name: paired(row.losses, rows[reference].losses) for name, row in rows.items() if name != reference}
    adjusted = holm({name: test.p for name, test in tests.items()})
    return {
        name: row._replace(rank=ranks.get(name), against=tests.get(name), p_holm=adjusted.get(name))
        for name, row in rows.items()
    }


def _shared(methods: list[Row], seeds: Iterable[int]) -> dict[str, float]:
    """Means over the same seeds for all: extra seeds of some may be easier ones.

    A method that failed on one of seeds 1 to N has none, and does not take the seed from the others; unless all have
    failed on one. Where a method has no run yet, nothing is shared.
    """
    known = [row for row in methods if row.losses or not row.failed]
    whole = [row for row in known if not row.failed.intersection(seeds)] or known
    common = [seed for seed in seeds if all(seed in row.losses for row in whole)]
    return {row.method: statistics.fmean(row.losses[seed] for seed in common) for row in whole} if common else {}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    """None where one is unknown."""
    known = list(values)
    return _mean(value for value in known if value is not None) if None not in known else None


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value
