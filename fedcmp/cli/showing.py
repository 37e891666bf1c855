"""Commands that show or check something, and train nothing. Each docstring is the command's help; each returns the
exit code."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

from fedcmp.cli.arguments import load, split_runs
from fedcmp.credentials import mask
from fedcmp.errors import ConfigError, FedcmpError, RunFolderError


def report(parsed: argparse.Namespace) -> int:
    """write the page of a run or comparison

    Writes one page with figures into each run folder or comparison folder and prints its path. Where a run of
    `fedcmp local` and runs of all clients together are given, of the same data, their pages compare them client by
    client. Nothing is computed.

    options:
      RUN | COMPARISON...  run folders and comparison folders

    examples:
      fedcmp report runs/together runs/alone        two runs
      fedcmp report runs/compare-demo-1             a comparison
    """
    from fedcmp.report.page import write_report

    paths = [Path(word) for word in parsed.words]
    for path in paths:
        print(write_report(path, beside=paths))
    return 0


def table(parsed: argparse.Namespace) -> int:
    """show finished runs in one table

    Prints a row for the summary.json of each run folder. Of a run of `fedcmp local` and runs of all clients together on
    the same data, a second table has the test losses of each client, alone and together. Nothing is computed. Runs that
    have not finished are named on standard error, and the exit code is 1 then.

    options:
      RUN...  run folders

    examples:
      fedcmp table runs/domain-*                   all runs of a scenario
      fedcmp table runs/together runs/alone        each client, too
    """
    from fedcmp.report.alone import beside_alone
    from fedcmp.report.formatting import table
    from fedcmp.report.run.reading import refuse_site
    from fedcmp.report.summary import compare_runs
    from fedcmp.runs.finished import open_finished

    finished: dict[Path, dict[str, Any]] = {}
    for path in map(Path, parsed.words):
        try:
            summary = open_finished(path)[1]
            refuse_site(path, summary)
            finished[path] = summary
        except RunFolderError as error:
            print(f"fedcmp: error: {mask(str(error))}", file=sys.stderr, flush=True)
    if finished:
        print(compare_runs(list(finished.values())))
    for one in beside_alone(list(finished)):
        print(f"\ntest loss of each client, on its own domains and on all:\n{table(one.rows, one.header)}")
        print("\n".join(one.sentences))
    return int(len(finished) < len(parsed.words))


def methods(parsed: argparse.Namespace) -> int:
    """show the table of aggregation methods

    A row has the local step, the fuse, the server step, what clients must record, whether the server sees sums only,
    and the paper. `aggregator=NAME` picks a row; `aggregator.fuse.kind=NAME` and its like exchange a part.

    options:
      [METHOD...]  names of methods; none: all
      --markdown  a Markdown table

    examples:
      fedcmp methods                                  all of them
      fedcmp methods fedcmp krum --markdown           two, for a document
    """
    from fedcmp.aggregation.presets import describe_methods
    from fedcmp.report.formatting import markdown, table

    header, rows = describe_methods(parsed.words)
    print(markdown(rows, header) if parsed.markdown else table(rows, header))
    return 0


def plan(parsed: argparse.Namespace) -> int:
    """say what a run would do, before anything is loaded

    Which rank trains which clients of round 1; rounds, samples and steps of every client; what the method needs; at
    most how many bytes a round sends; memory and hours of a rank, estimated. Records are read, weights are not, and
    pictures only where they may overlap. What a run would refuse is refused here.

    options:
      [CONFIG | key=value...]
      --ranks N  how many ranks (launch.devices)

    examples:
      fedcmp plan configs/scenarios/domain.yaml --ranks 4             a run on four ranks
      fedcmp plan --ranks 4 launch.group_size=2 federation.slots=4    two groups of two, four clients at once
    """
    from fedcmp.report.plan import describe_plan
    from fedcmp.runs.plan import plan

    print(describe_plan(plan(load(parsed.words)[0], parsed.ranks)))
    return 0


def doctor(parsed: argparse.Namespace) -> int:
    """check machine, environment and config, and say what to do

    A line for each check: `ok`, `warn` (a run works, but not as well as it could) or `fatal` (it would fail), what was
    found, and after -> what to do. Nothing is changed and no key is shown. The exit code is 1 if anything is fatal.

    options:
      [CONFIG | key=value...]

    examples:
      fedcmp doctor                                                        this machine
      fedcmp doctor configs/scenarios/domain.yaml run.device=cuda          and what this run needs
    """
    from fedcmp.doctor import examine

    fatal = False
    for finding in examine(load(parsed.words)[0]):
        print(finding.line(), flush=True)
        fatal |= finding.status == "fatal"
    return int(fatal)


def configs(parsed: argparse.Namespace) -> int:
    """list the configs that come with fedcmp, or print one

    A command that takes CONFIG takes these names, too; a file of that name in the current folder comes first.

    options:
      [NAME...]  names of shipped configs; none: all

    examples:
      fedcmp configs                               all names
      fedcmp configs demo/topic > mine.yaml        a config to change
    """
    from fedcmp.shipped import about, find_config, shipped

    for word in parsed.words:
        print(find_config(Path(word)).read_text(encoding="utf-8"), end="")
    if not parsed.words:
        width = max(map(len, shipped()), default=0)
        for name, path in shipped().items():
            print(f"{name:{width}}  {textwrap.shorten(about(path), 118 - width, placeholder=' ...')}")
    return 0


def validate(parsed: argparse.Namespace) -> int:
    """check config files

    Checks keys, names and values of every .yaml file given, or in the folders given, each with the overrides; overrides
    alone are those of the embedded demo. No data or model is opened.

    options:
      [WORDS...]  config files or folders (configs), and overrides

    examples:
      fedcmp validate                                   all in configs/; where there is none, the shipped ones
      fedcmp validate mine.yaml federation.rounds=20    the words of a run
    """
    from fedcmp.config import load_config
    from fedcmp.shipped import FOLDER, find_config

    files: list[Path] = []
    given, overrides = split_runs(parsed.words)
    if overrides and not given:
        load_config(None, overrides)
        print("ok     demo")
        return 0
    for path in given or [Path("configs")]:
        path = FOLDER if path == Path("configs") and not path.exists() else path
        if not path.is_dir():
            find_config(path)  # wrong files are counted, a missing one ends the command
        files += sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no .yaml file in {', '.join(map(str, given)) or 'configs'}")
    wrong = 0
    for file in files:
        try:
            load_config(file, overrides)
            print(f"ok     {file}")
        except FedcmpError as error:
            wrong += 1
            print(f"wrong  {file}: {error}")
    if len(files) > 1:
        print(f"{len(files)} configs, {wrong} wrong")
    return 2 if wrong else 0
