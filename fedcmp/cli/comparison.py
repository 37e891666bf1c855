"""``fedcmp compare``: methods side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fedcmp.cli.arguments import split_words
from fedcmp.distributed.launch import started_by
from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.locking import check_free


def compare(parsed: argparse.Namespace) -> int:
    """compare methods with equal tuning budgets

    Every method, and centralized and local training as bounds, gets --budget tuning runs in every setting; its best by
    validation loss is run on --seeds seeds and reported by test loss, with paired tests against the reference. A method
    is [label=]PRESET[:key=value]*, a scenario [label=]SCENARIO_OR_FILE[:key=value]*, with commas between them. All is
    in one folder; `fedcmp compare --out DIR` goes on, and other options and overrides change what is asked for there.
    See docs/compare.md.

    options:
      [CONFIG | key=value...]  a config file and overrides, for everything alike
      --methods WORDS,...  what is compared (fedavg,fedadam,fedcmp)
      --scenarios WORDS,...  in which settings (CONFIG unchanged)
      --seeds N  every method is reported on seeds 1 to N (5)
      --budget N  tuning runs of every method and bound in every setting (4); 1: none
      --tuning-seeds N  each of them on N seeds; the lowest mean is taken (1)
      --optimizers NAME=LR,...  local optimizers beside CONFIG's, each with the same budget, around LR
      --extra-seeds N  the reference, its strongest rivals and the bounds: seeds up to N
      --rivals N  how many rivals of each setting get the extra seeds (2)
      --workers N  runs at once, each launch.devices processes (as many as fit the GPUs, or the cores)
      --reference LABEL  whom the others are tested against (fedcmp, or the first)
      --out DIR  the comparison's folder, new or begun (runs/compare-CONFIG-N)
      --table md|csv|tex  print the tables in this form
      --retry-failed  run failed runs again
      --no-bounds  leave centralized and local out
      --dry-run  print which runs there would be and what they would cost; nothing is run
      --keep-projectors  runs keep their projector.safetensors

    examples:
      fedcmp compare --methods fedavg,fedadam,fedcmp --seeds 5                     three methods on the demo
      fedcmp compare --out runs/compare-demo-1 --seeds 5 --extra-seeds 10          more seeds for the best three
    """
    out = Path(parsed.out) if parsed.out else None
    if started_by() != "none":
        raise ConfigError("compare starts its own processes (--workers): call it once, not under fabric run or srun")
    if not parsed.dry_run:
        check_free(out)

    from fedcmp.compare import ComparisonEnded, Place, Request, again, ask, compare
    from fedcmp.federation.folder import check_unused

    request = Request(
        methods=",".join(parsed.methods) if parsed.methods else None,
        scenarios=",".join(parsed.scenarios) if parsed.scenarios else None,
        optimizers=",".join(parsed.optimizers) if parsed.optimizers else None,
        bounds=False if parsed.no_bounds else None,
        keep_projectors=parsed.keep_projectors or None,
        **{
            name: getattr(parsed, name)
            for name in ("seeds", "budget", "tuning_seeds", "extra_seeds", "rivals", "reference")
        },
    )
    file, overrides = split_words(parsed.words)
    begun = out is not None and Place(out).is_begun()
    if out is not None and not begun and not parsed.words and set(request) == {None}:
        raise ConfigError(f"--out: no comparison was begun in {out}; CONFIG, --methods or another option begins one")
    if out is not None and not begun:
        try:
            check_unused(out)
        except RunFolderError as error:
            raise RunFolderError(f"--out: {error}") from error
    if out is not None and begun and file is None:
        study = again(Place(out).read(), request, overrides)
    else:
        study = ask(file, overrides, request)
    if parsed.dry_run:
        from fedcmp.compare.foretell import foretell

        print(foretell(study, out))
        return 0
    onward = ""

    def on_folder(folder: Path) -> None:
        nonlocal onward
        onward = shlex.join(["fedcmp", "compare", "--out", str(folder)])
        _tell(f"{'begun' if begun else 'new'} comparison: {folder}; whatever ends this, it goes on with: {onward}")

    try:
        done = compare(
            study,
            out,
            workers=parsed.workers,
            retry_failed=parsed.retry_failed,
            tell=_tell,
            on_folder=on_folder,
        )
    except ComparisonEnded as error:
        raise ComparisonEnded(f"{error}; the comparison goes on with: {onward}") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"the comparison goes on with: {onward}" if onward else "") from error
    print(done.tables[parsed.table or "text"].rstrip("\n"))
    if parsed.table is None:
        print(f"\ntables: {done.folder}/table.md, table.csv, table.tex; every run: {done.folder}/runs.jsonl")
        print(f"its page, to be drawn again after each change: {shlex.join(['fedcmp', 'report', str(done.folder)])}")
    if done.failed:
        _tell(f"failed runs: {done.failed}, with tracebacks in {done.folder}/cells/*/error.txt")
        _tell(f"to try them again: {onward} --retry-failed")
    if done.stopped:
        _tell(f"stopped; it goes on with: {onward}")
    return 1 if done.failed else 0


def _tell(line: str) -> None:
    """Standard output is for the tables."""
    print(line, file=sys.stderr, flush=True)
