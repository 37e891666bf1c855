"""``fedcmp evaluate``: its words, its table, and the commands of lmms-eval."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fedcmp.cli.commands import _one_run
from fedcmp.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fedcmp evaluate``."""
    parser.add_argument("words", nargs="+", metavar="RUN | key=value", help="run folders and overrides")
    parser.add_argument("--print-lmms-eval", action="store_true", help="print how lmms-eval scores RUN; nothing is run")
    parser.add_argument("--tasks", metavar="NAMES", help="its tasks, with commas; without it: those that need no judge")
    parser.add_argument("--export", metavar="DIR", help="the export of RUN, made or to be made (RUN/hf)")


def evaluate(parsed: argparse.Namespace) -> int:
    """``fedcmp evaluate``; returns the exit code."""
    if parsed.print_lmms_eval:
        return _lmms_eval(parsed)
    for option in ("tasks", "export"):
        if getattr(parsed, option) is not None:
            raise ConfigError(f"--{option} says something about --print-lmms-eval, which is not there")
    from fedcmp.federation.folder import RunFolder
    from fedcmp.report.summary import QUALITY, known_columns, quality_columns
    from fedcmp.report.table import table
    from fedcmp.runs.finished import evaluate_run

    runs = [Path(word) for word in parsed.words if "=" not in word or Path(word).exists()]
    overrides = [word for word in parsed.words if Path(word) not in runs]
    if not runs:
        raise ConfigError("evaluate needs a run folder, for example: fedcmp evaluate runs/demo-fedavg-1")
    results = [(path, evaluate_run(path, overrides)) for path in runs]
    rows = [[str(path), result["val/loss"], *quality_columns(result["test"])] for path, result in results]
    header, rows = known_columns(["run", "validation", *QUALITY], rows)
    print(table(rows, header))
    for path, result in results:
        if result["projector"] != str(RunFolder(path).projector):
            print(f"{path}: not its own projector, but {result['projector']}")
    return 0


def _lmms_eval(parsed: argparse.Namespace) -> int:
    """Standard output is for a shell; what to know goes to standard error."""
    from fedcmp.runs.lmms_eval import TASKS, lmms_eval_commands

    path, overrides = _one_run(parsed.words, "evaluate --print-lmms-eval", "runs/demo-fedcmp-1 --print-lmms-eval")
    tasks = TASKS if parsed.tasks is None else [name.strip() for name in parsed.tasks.split(",")]
    told = lmms_eval_commands(path, tasks, Path(parsed.export) if parsed.export else None, overrides)
    for note in told.notes:
        print(f"# {note}", file=sys.stderr, flush=True)
    for command in told.commands:
        print(shlex.join(command))
    return 0
