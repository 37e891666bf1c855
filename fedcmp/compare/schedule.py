"""Which runs a comparison needs, given those that have ended. Pure: a stopped comparison goes on from its records.

Tuning runs come first; when all of a method's have ended, the best options are run on the reported seeds; when all
methods of a setting have theirs, the strongest get the extra seeds. Of each seed, methods come before bounds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from fedcmp.compare.grid import Options
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.report.comparison.results import Result

Results = Mapping[str, Result]
"""By the id of the job."""


class Tuned(NamedTuple):
    """What tuning found; neither, as long as a run of it is missing."""

    options: Options | None = None
    """Those with the lowest validation loss, the mean over tuning seeds, the first of equals."""
    error: str | None = None
    """Of the first failed run, where no options have finished on all tuning seeds."""


def tuned(jobs: Jobs, setting: str, entrant: str, results: Results) -> Tuned:
    """What the tuning runs of a method in a setting found."""
    tuning = jobs.tuning(setting, entrant)
    if not tuning:
        return Tuned(jobs.grids[setting, entrant][0])
    if any(job.id not in results for job in tuning):
        return Tuned()
    tried = jobs.grids[setting, entrant]
    runs = [results[job.id] for job in tuning]
    losses = [run.record["val_loss"] if run.finished else math.inf for run in runs]
    means = [fmean(losses[place :: len(tried)]) for place in range(len(tried))]
    if min(means) == math.inf:
        return Tuned(error=next(str(run.record["error"]) for run in runs if not run.finished))
    return Tuned(tried[means.index(min(means))])


def wanted(jobs: Jobs, results: Results) -> list[Job]:
    """The jobs that the comparison is known to need, done or not, setting after setting, seed after seed."""
    found: list[Job] = []
    for setting in jobs.settings:
        found += [job for entrant in jobs.entrants for job in jobs.tuning(setting, entrant)]
        options = {entrant: tuned(jobs, setting, entrant, results).options for entrant in jobs.entrants}
        extra = favoured(jobs, setting, results)
        for seed in range(1, jobs.study.last_seed + 1):
            for entrant, best in options.items():
                if best is not None and (seed <= jobs.study.seeds or entrant in extra):
                    found.append(jobs.final(setting, entrant, best, seed))
    return found


def missing(jobs: Jobs, results: Results) -> list[Job]:
    """Those of ``wanted`` that have not ended, each run once."""
    return list({job.id: job for job in wanted(jobs, results) if job.id not in results}.values())


def favoured(jobs: Jobs, setting: str, results: Results) -> set[str]:
    """The entrants with extra seeds: the reference, its strongest rivals by mean test loss, the bounds.

    Only rivals that finished on all seeds 1 to ``seeds`` count. Empty without extra seeds, and as long as a run is
    missing on which the order of the rivals depends.
    """
    study, losses = jobs.study, dict[str, float]()
    if not study.extra_seeds:
        return set()
    for method in jobs.methods:
        best = tuned(jobs, setting, method, results)
        if best.error is not None:
            continue
        seeds = range(1, study.seeds + 1) if best.options is not None else ()
        runs = [results.get(jobs.final(setting, method, best.options or {}, seed).id) for seed in seeds]
        known = [run for run in runs if run is not None]
        if len(known) < study.seeds:
            return set()
        if all(run.finished for run in known):
            losses[method] = sum(float(run.test["loss"]) for run in known)
    rivals = sorted((method for method in losses if method != study.reference), key=lambda method: losses[method])
    return {study.reference, *rivals[: study.rivals], *jobs.bounds}


def remaining(jobs: Jobs, results: Results) -> int:
    """How many runs are still to come, with those of which the options are not known yet."""
    return sum(remaining_by_setting(jobs, results).values())


def remaining_by_setting(jobs: Jobs, results: Results) -> dict[str, int]:
    """The same for each setting; a run that two settings share is one of the first."""
    study, left = jobs.study, Counter(job.cell.setting for job in missing(jobs, results))
    for setting in jobs.settings:
        left[setting] += study.seeds * [tuned(jobs, setting, one, results) for one in jobs.entrants].count(Tuned())
        if study.extra_seeds and not favoured(jobs, setting, results):
            strong = 1 + min(study.rivals, len(jobs.methods) - 1) + len(jobs.bounds)
            left[setting] += strong * (study.extra_seeds - study.seeds)
    return left
