"""Which runs a comparison needs, as far as what has been run tells. Pure: what was stopped goes on from the records.

Tuning runs first; when all of a method's are there, the best one's options are run on the seeds that are reported; when
all methods of a setting have theirs, the strongest get the extra seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedcmp.compare.cells import Job, Jobs
from fedcmp.compare.grid import Options

Record = Mapping[str, Any]
"""A line of runs.jsonl."""
Records = Mapping[str, Record]
"""By the id of the job."""


def wanted(jobs: Jobs, records: Records) -> list[Job]:
    """The jobs that the comparison is known to need, done or not, setting after setting, seed after seed."""
    found: list[Job] = []
    for setting in jobs.settings:
        entrants = [*jobs.bounds, *jobs.methods]
        found += [job for entrant in entrants for job in jobs.tuning(setting, entrant)]
        options = {entrant: chosen(jobs, setting, entrant, records) for entrant in entrants}
        extra = favoured(jobs, setting, records) if jobs.study.extra_seeds else set()
        for seed in range(1, jobs.study.last_seed + 1):
            for entrant in entrants:
                best = options[entrant]
                if best is not None and (seed <= jobs.study.seeds or entrant in extra):
                    found.append(jobs.final(setting, entrant, best, seed))
    return found


def chosen(jobs: Jobs, setting: str, entrant: str, records: Records) -> Options | None:
    """The options with the lowest validation loss, the first of equals.

    None as long as a tuning run is missing, and where all have failed.
    """
    tuning = jobs.tuning(setting, entrant)
    if not tuning:
        return jobs.grids[setting, entrant][0]
    if any(job.id not in records for job in tuning):
        return None
    best = min(tuning, key=lambda job: _loss(records[job.id]))
    return best.cell.options if math.isfinite(_loss(records[best.id])) else None


def gave_up(jobs: Jobs, setting: str, entrant: str, records: Records) -> str | None:
    """Why there is nothing to report: the error of a tuning run, where all of them have failed."""
    tuning = [records.get(job.id) for job in jobs.tuning(setting, entrant)]
    if not tuning or any(one is None or one["status"] == "finished" for one in tuning):
        return None
    return str(next(one["error"] for one in tuning if one is not None))


def favoured(jobs: Jobs, setting: str, records: Records) -> set[str]:
    """Who gets the extra seeds: the reference, its strongest rivals by mean test loss on the seeds that all have, the
    bounds. Empty as long as a run is missing by which rivals are told apart. A rival that failed on a seed is none.
    """
    means: dict[str, float] = {}
    for method in jobs.methods:
        best = chosen(jobs, setting, method, records)
        if best is None:
            if gave_up(jobs, setting, method, records) is None:
                return set()
            continue
        runs = [records.get(jobs.final(setting, method, best, seed).id) for seed in range(1, jobs.study.seeds + 1)]
        if any(run is None for run in runs):
            return set()
        if all(run is not None and run["status"] == "finished" for run in runs):
            means[method] = sum(float(run["test"]["loss"]) for run in runs if run is not None)
    rivals = sorted((method for method in means if method != jobs.study.reference), key=lambda method: means[method])
    return {jobs.study.reference, *rivals[: jobs.study.rivals], *jobs.bounds}


def remaining(jobs: Jobs, records: Records) -> int:
    """How many runs are still to come, those included of which is not known yet which ones they will be."""
    known = wanted(jobs, records)
    left = sum(job.id not in records for job in _once(known))
    study = jobs.study
    for setting in jobs.settings:
        entrants = [*jobs.bounds, *jobs.methods]
        open_ = [
            one
            for one in entrants
            if chosen(jobs, setting, one, records) is None and gave_up(jobs, setting, one, records) is None
        ]
        left += len(open_) * study.seeds
        if study.extra_seeds and not favoured(jobs, setting, records):
            strong = 1 + min(study.rivals, len(jobs.methods) - 1) + len(jobs.bounds)
            left += strong * (study.extra_seeds - study.seeds)
    return left


def _once(jobs: Iterable[Job]) -> list[Job]:
    return list({job.id: job for job in jobs}.values())


def _loss(record: Record) -> float:
    return float(record["val_loss"]) if record["status"] == "finished" else math.inf
