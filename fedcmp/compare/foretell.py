"""``fedcmp compare --dry-run``: which runs there would be, and what they would cost."""

from __future__ import annotations

from pathlib import Path

from fedcmp.compare.folder import Place
from fedcmp.compare.inputs import check_inputs
from fedcmp.compare.jobs import Jobs
from fedcmp.compare.schedule import remaining_by_setting
from fedcmp.compare.spec import Study
from fedcmp.models.cost import REACHED
from fedcmp.report.comparison.results import read_results
from fedcmp.report.formatting import duration, table
from fedcmp.runs.plan import plan


def foretell(study: Study, out: Path | None = None) -> str:
    """The runs of a comparison, how many its folder ``out`` lacks, and what training costs. Nothing is written.

    Each run counts as one of the first method on the tuning seed; other seeds may have clients of other sizes.

    Raises:
        ConfigError, DataError: a run would be refused.
        RunFolderError: a line of the folder cannot be read.
    """
    jobs = Jobs(study)
    check_inputs(jobs)
    done = read_results(Place(out).runs) if out is not None else []
    results = {one.id: one for one in done}
    left = remaining_by_setting(jobs, results)
    rows = [[*key, len(jobs.tuning(*key)), study.seeds] for key in jobs.grids]
    facts = [["runs", f"{sum(left.values()):,} to do"]]
    if study.extra_seeds > study.seeds:
        facts.append(["extra seeds", f"to {study.extra_seeds}: {study.reference}, rivals ({study.rivals}), bounds"])
    samples, operations, seconds = 0, 0.0, dict[str, float]()
    for setting in jobs.settings:
        page = plan(jobs.configs[setting, jobs.methods[0]])
        samples += left[setting] * page.forecast.num_samples
        if page.effort:
            operations += left[setting] * page.effort.run
            for name, one in page.effort.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + left[setting] * one
    facts.append(["training samples", f"{samples:,}"])
    if operations:
        facts.append(["operations in training", f"{operations:.2g}"])
    if seconds:
        facts.append(
            [f"at {REACHED:.0%} of the peak", ", ".join(f"{name} {duration(s)}" for name, s in seconds.items())]
        )
    if took := [one.record["seconds"]["total"] for one in results.values() if one.finished]:
        mean = sum(took) / len(took)
        facts.append(["as long as those done", f"{duration(sum(left.values()) * mean)}, one at a time"])
    return f"{table(rows, ['setting', 'method', 'tuning runs', 'seeds'])}\n\n{table(facts)}"
