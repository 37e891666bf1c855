"""From the runs of a comparison to the numbers of its tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from fedcmp.compare.grid import Options
from fedcmp.compare.jobs import Jobs
from fedcmp.compare.schedule import Results, chosen, favoured, gave_up
from fedcmp.compare.statistics import Paired, deviation, holm, mean_ranks, paired, recovered
from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.report.comparison.results import BOUNDS

MEASURES = {
    "worst domain": ("worst_domain", "loss"),
    "image use": ("image_use",),
    "token accuracy": ("token_accuracy",),
    "CIDEr": ("cider",),
    "yes/no right": ("probe", "accuracy"),
    "digits named": ("digits_named",),
}
"""The numbers beside the loss, where the data allow them: title -> keys in ``test``."""


class Row(NamedTuple):
    """One method, or bound, in one setting."""

    method: str
    asked: int
    """On how many seeds it is to be reported."""
    losses: dict[int, float]
    """Seed -> test loss, of the runs that finished."""
    uses: dict[int, float]
    """Seed -> image use, of the runs that finished."""
    failed: frozenset[int]
    """The seeds on which it failed; all, where every tuning run did."""
    error: str | None
    """Of its first failed run."""
    chosen: Options | None
    """The options that its tuning chose."""
    mean: float | None
    """Of all its losses."""
    deviation: float | None
    measures: dict[str, float]
    """Means over seeds."""
    ignores_pictures: bool
    """Its image use, the mean over seeds, is about zero."""
    shared: float | None = None
    """Mean loss on the seeds that all methods have, by which methods are ordered; None: it failed on one of seeds 1 to
    N, or nothing is shared yet."""
    recovered: float | None = None
    """Share of the way from local to centralized, in loss."""
    recovered_use: float | None = None
    """The same in image use; None where centralized makes no use of pictures, too."""
    rank: float | None = None
    """Mean over the seeds that all methods have."""
    against: Paired | None = None
    """Against the reference; None for itself and for bounds."""
    p_holm: float | None = None

    @property
    def is_bound(self) -> bool:
        """Whether it is no method."""
        return self.method in BOUNDS


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


class Found(NamedTuple):
    """All numbers of a comparison."""

    settings: dict[str, list[Row]]
    """Best first; centralized before and local after all others."""
    overall: list[Overall]


def evaluate(jobs: Jobs, results: Results) -> Found:
    """The numbers so far."""
    settings = {setting: _setting(jobs, setting, results) for setting in jobs.settings}
    ranks = mean_ranks([block for rows in settings.values() for block in _blocks(jobs, rows)])
    by_method = {
        name: [row for rows in settings.values() for row in rows if row.method == name] for name in jobs.methods
    }
    reference = [row.losses for row in by_method[jobs.study.reference]]
    tests = {name: paired([row.losses for row in rows], reference) for name, rows in by_method.items()}
    del tests[jobs.study.reference]
    adjusted = holm({name: test.p for name, test in tests.items()})
    leaders = [next(row for row in rows if not row.is_bound) for rows in settings.values()]
    overall = [
        Overall(
            name,
            ranks.get(name),
            sum(leader.method == name and leader.shared is not None for leader in leaders),
            _mean_of_all(row.recovered for row in rows),
            _mean_of_all(row.recovered_use for row in rows),
            tests.get(name),
            adjusted.get(name),
            sum(len(row.failed) for row in rows),
            sum(row.asked for row in rows),
        )
        for name, rows in by_method.items()
    ]
    return Found(settings, sorted(overall, key=lambda row: _or_last(row.rank)))


def _setting(jobs: Jobs, setting: str, results: Results) -> list[Row]:
    extra = favoured(jobs, setting, results)
    rows = {one: _row(jobs, setting, one, results, one in extra) for one in jobs.entrants}
    ranks = mean_ranks(_blocks(jobs, rows.values()))
    shared = _shared(jobs, [rows[name] for name in jobs.methods])
    reference = rows[jobs.study.reference].losses
    tests = {name: paired([rows[name].losses], [reference]) for name in jobs.methods if name != jobs.study.reference}
    adjusted = holm({name: test.p for name, test in tests.items()})
    for name in jobs.methods:
        row = rows[name]
        if jobs.bounds:
            local, centralized = rows["local"], rows["centralized"]
            low, high, own = ({seed: -use for seed, use in one.uses.items()} for one in (local, centralized, row))
            row = row._replace(
                recovered=recovered(row.losses, local.losses, centralized.losses),
                recovered_use=None if centralized.ignores_pictures else recovered(own, low, high),
            )
        row = row._replace(rank=ranks.get(name), shared=shared.get(name))
        rows[name] = row._replace(against=tests.get(name), p_holm=adjusted.get(name))
    place = {"centralized": 0, "local": 2}
    return sorted(rows.values(), key=lambda row: (place.get(row.method, 1), _or_last(row.shared), _or_last(row.mean)))


def _row(jobs: Jobs, setting: str, entrant: str, results: Results, extra: bool) -> Row:
    """Without the numbers that need other rows."""
    asked = jobs.study.extra_seeds if extra else jobs.study.seeds
    options, error = chosen(jobs, setting, entrant, results), gave_up(jobs, setting, entrant, results)
    runs = {}
    if options is not None:
        ids = {seed: jobs.final(setting, entrant, options, seed).id for seed in range(1, asked + 1)}
        runs = {seed: results[id_] for seed, id_ in ids.items() if id_ in results}
    done = {seed: run for seed, run in runs.items() if run.finished}
    failed = frozenset(range(1, asked + 1) if error is not None else runs.keys() - done.keys())
    if runs and failed:
        error = str(runs[min(failed)].record["error"])

    def by_seed(*keys: str) -> dict[int, float]:
        return {seed: value for seed, run in done.items() if (value := run.measured("test", *keys)) is not None}

    losses, uses = by_seed("loss"), by_seed("image_use")
    measures = {
        title: value for title, keys in MEASURES.items() if (value := _mean(by_seed(*keys).values())) is not None
    }
    judged = {key: _mean(by_seed(key).values()) for key in ("loss", "image_use", "image_use_se")}
    mean, spread = _mean(losses.values()), deviation(list(losses.values()))
    ignores = ignores_pictures(judged)
    return Row(entrant, asked, losses, uses, failed, error, options, mean, spread, measures, ignores)


def _shared(jobs: Jobs, methods: list[Row]) -> dict[str, float]:
    """Means over the same seeds for all: extra seeds of some may be easier ones.

    A method that failed on one of seeds 1 to N has none, and does not take the seed from the others; unless all have
    failed on one.
    """
    seeds = range(1, jobs.study.seeds + 1)
    known = [row for row in methods if row.losses]
    whole = [row for row in known if not row.failed.intersection(seeds)] or known
    common = [seed for seed in seeds if all(seed in row.losses for row in whole)]
    return {row.method: statistics.fmean(row.losses[seed] for seed in common) for row in whole} if common else {}


def _blocks(jobs: Jobs, rows: Iterable[Row]) -> list[dict[str, float | None]]:
    """Of every seed that all methods are to have and that all have run, finished or failed."""
    methods = [row for row in rows if not row.is_bound]
    seeds = range(1, jobs.study.seeds + 1)
    complete = [seed for seed in seeds if all(seed in row.losses or seed in row.failed for row in methods)]
    return [{row.method: row.losses.get(seed) for row in methods} for seed in complete]


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    """None where one is unknown."""
    known = list(values)
    return _mean(value for value in known if value is not None) if None not in known else None


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value
