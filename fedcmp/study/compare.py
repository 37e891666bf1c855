"""A comparison from what was asked to its tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedcmp.errors import ConfigError
from fedcmp.locking import locked
from fedcmp.report.formatting import duration
from fedcmp.study.asked import Study
from fedcmp.study.cells import Job, Jobs
from fedcmp.study.features import encode_features, open_jobs
from fedcmp.study.inputs import check_inputs
from fedcmp.study.ledger import Ledger
from fedcmp.study.place import open_place
from fedcmp.study.results import results
from fedcmp.study.runner import Runner, Tell, start_workers
from fedcmp.study.schedule import remaining
from fedcmp.study.sheets import legend, sheets
from fedcmp.study.tables import as_csv, as_json, as_latex, as_markdown, as_text


class Compared(NamedTuple):
    """What a comparison leaves."""

    folder: Path
    tables: dict[str, str]
    """By kind: text, md, csv, tex, json."""
    stopped: bool
    """It was asked to stop before all was done."""
    failed: int
    """How many of the runs that count failed."""


def compare(
    study: Study,
    out: Path | None = None,
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    command: str = "",
    tell: Tell = lambda line: None,
    on_folder: Callable[[Path], None] = lambda folder: None,
) -> Compared:
    """Runs what is missing, and writes tables of what is there.

    Args:
        study: what is compared.
        out: the comparison's folder, new or begun; None: ``runs/compare-<config>-N``.
        workers: processes that run at once; None: one a GPU, or one a core.
        retry_failed: run failed runs again.
        command: what the user typed, for the record.
        tell: shows a line of progress.
        on_folder: told the folder before the work begins.

    Raises:
        ConfigError, DataError: a word or a config is wrong, or a run would be refused; nothing has been run.
        RunFolderError: the folder holds something else, cannot be written, or another comparison is at work in it.
        ComparisonEnded: something outside the runs ended it.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    jobs = Jobs(study)
    new = out is None or not (out / "compare.json").is_file()
    if new:
        check_inputs(_firsts(jobs))
    place = open_place(out, Path(study.file).stem if study.file else "demo")
    with locked(place.path):
        ledger = Ledger(place.runs)
        if retry_failed:
            ledger.forget_failed()
        if not new and remaining(jobs, ledger.records):
            check_inputs(_firsts(jobs))
        place.write(study, jobs, command)
        on_folder(place.path)

        def renew() -> dict[str, str]:
            found = results(jobs, ledger.records)
            drawn, words = sheets(jobs, found), legend(jobs)
            tables = {
                "md": as_markdown(f"Comparison {place.name}", drawn, words),
                "csv": as_csv(jobs, found),
                "tex": as_latex(drawn, words),
                "json": as_json(jobs, found),
            }
            place.write_tables(tables)
            return {"text": as_text(drawn, words), **tables}

        runner = Runner(jobs, ledger, place, tell, renew)
        runner.tidy()
        missing, stopped = runner.missing(), False
        if missing:
            renew()
            cost = encode_features(open_jobs(jobs, ledger.records), place.features)
            place.write(study, jobs, command, cost)
            how = f"{cost['encoded']:,} encoded" if cost["encoded"] else "all in a cache already"
            tell(f"features of {cost['pictures']:,} pictures, for all runs: {how} ({duration(cost['seconds'])})")
            crew, count = start_workers(missing, place, workers)
            left = remaining(jobs, ledger.records)
            what = f"settings: {', '.join(jobs.settings)}; methods: {', '.join([*jobs.methods, *jobs.bounds])}"
            tell(f"{what}; {left} run{'s' * (left != 1)} to do, {count} at once")
            stopped = runner.run(crew, count)
            if not stopped:
                shutil.rmtree(place.features, ignore_errors=True)
        tables = renew()
        return Compared(place.path, tables, stopped, runner.failed())


def _firsts(jobs: Jobs) -> list[Job]:
    """The first run of every method and bound in every setting."""
    return [
        (jobs.tuning(setting, one) or [jobs.final(setting, one, jobs.grids[setting, one][0], 1)])[0]
        for setting in jobs.settings
        for one in [*jobs.bounds, *jobs.methods]
    ]
