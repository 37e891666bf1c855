"""Which runs a comparison needs, given those that have ended. Pure: a stopped comparison goes on from its records.

Tuning runs come first; when all of a method's have ended, the best options are run on the reported seeds; when all
methods of a setting have theirs, the strongest get the extra seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedcmp.compare.grid import Options
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.report.comparison.results import Result

Results = Mapping[str, Result]
"""By the id of the job."""


def wanted(jobs: Jobs, results: Results) -> list[Job]:
    """The jobs that the comparison is known to need, done or not, setting after setting, seed after seed."""
    found: list[Job] = []
    for setting in jobs.settings:
        found += [job for entrant in jobs.entrants for job in jobs.tuning(setting, entrant)]
        options = {entrant: chosen(jobs, setting, entrant, results) for entrant in jobs.entrants}
        extra = favoured(jobs, setting, results)
        for seed in range(1, jobs.study.last_seed + 1):
            for entrant, best in options.items():
                if best is not None and (seed <= jobs.study.seeds or entrant in extra):
                    found.append(jobs.final(setting, entrant, best, seed))
    return found


def missing(jobs: Jobs, results: Results) -> list[Job]:
    """Those of ``wanted`` that have not ended, each run once."""
    return list({job.id: job for job in wanted(jobs, results) if job.id not in results}.values())


def chosen(jobs: Jobs, setting: str, entrant: str, results: Results) -> Options | None:
    """The options with the lowest validation loss, the first of equals.

    None as long as a tuning run is missing, and where all have failed.
    """
    tuning = jobs.tuning(setting, entrant)
    if not tuning:
        return jobs.grids[setting, entrant][0]
    if any(job.id not in results for job in tuning):
        return None
    losses = {job.id: _loss(results[job.id]) for job in tuning}
    best = min(tuning, key=lambda job: losses[job.id])
    return best.cell.options if math.isfinite(losses[best.id]) else None


def gave_up(jobs: Jobs, setting: str, entrant: str, results: Results) -> str | None:
    """The error of a tuning run, where all of them have failed."""
    tuning = [results.get(job.id) for job in jobs.tuning(setting, entrant)]
    errors = [str(one.record["error"]) for one in tuning if one is not None and not one.finished]
    return errors[0] if tuning and len(errors) == len(tuning) else None


def favoured(jobs: Jobs, setting: str, results: Results) -> set[str]:
    """The entrants with extra seeds: the reference, its strongest rivals by mean test loss, the bounds.

    Only rivals that finished on all seeds 1 to ``seeds`` count. Empty without extra seeds, and as long as a run is
    missing on which the order of the rivals depends.
    """
    study, losses = jobs.study, dict[str, float]()
    for method in jobs.methods if study.extra_seeds else ():
        best = chosen(jobs, setting, method, results)
        if best is None and gave_up(jobs, setting, method, results) is None:
            return set()
        if best is None:
            continue
        runs = [results.get(jobs.final(setting, method, best, seed).id) for seed in range(1, study.seeds + 1)]
        if None in runs:
            return set()
        if all(run is not None and run.finished for run in runs):
            losses[method] = sum(float(run.test["loss"]) for run in runs if run is not None)
    rivals = sorted((method for method in losses if method != study.reference), key=lambda method: losses[method])
    return {study.reference, *rivals[: study.rivals], *jobs.bounds} if study.extra_seeds else set()


def remaining(jobs: Jobs, results: Results) -> int:
    """How many runs are still to come, with those of which the options are not known yet."""
    study, left = jobs.study, len(missing(jobs, results))
    for setting in jobs.settings:
        for one in jobs.entrants:
            if chosen(jobs, setting, one, results) is None and gave_up(jobs, setting, one, results) is None:
                left += study.seeds
        if study.extra_seeds and not favoured(jobs, setting, results):
            strong = 1 + min(study.rivals, len(jobs.methods) - 1) + len(jobs.bounds)
            left += strong * (study.extra_seeds - study.seeds)
    return left


def _loss(result: Result) -> float:
    return float(result.record["val_loss"]) if result.finished else math.inf
