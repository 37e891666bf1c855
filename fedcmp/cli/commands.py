"""What each command does; its docstring is its help. Each returns the exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcmp.credentials import mask
from fedcmp.distributed.launch import started_by
from fedcmp.errors import ConfigError, DataError, FedcmpError, RunFolderError
from fedcmp.locking import check_free

if TYPE_CHECKING:
    from fedcmp.config import Config


def train(parsed: argparse.Namespace) -> int:
    """train a projector in federated rounds

    Each client trains the projector between a frozen vision tower and a frozen LLM on its own pairs; the aggregator
    fuses their updates. Writes a run folder (runs/NAME, or run.dir) and prints a table. SIGUSR1 or SIGTERM stops a run
    at the end of its round. Under `fabric run`, torchrun or srun each rank runs the same command.

    options:
      [CONFIG | key=value...]
      --resume RUN  go on with a run that was stopped or killed
      --sites NAMES  the clients are these sites, with commas, and the data are theirs (docs/sites.md)
      --kits DIR  with --sites: where `fedcmp sites kits` wrote (kits)
      --patience N  with --sites: seconds within which a site must answer (3600)

    examples:
      fedcmp train aggregator=fedadam federation.rounds=4      the embedded demo: eight clients, about a minute
      fedcmp train --resume runs/mine                          go on, to the bits of an uninterrupted run
    """
    old = None if parsed.resume is None else Path(parsed.resume)
    if started_by() == "none":  # of ranks, one may have it already
        check_free(old)

    from fedcmp.cli.institutions import is_over_sites, train_at_sites
    from fedcmp.distributed.launch import start_ranks
    from fedcmp.runs.train import reopen, resume, train

    if parsed.sites is not None or (old is not None and is_over_sites(old)):
        return train_at_sites(parsed)
    if parsed.kits is not None or parsed.patience is not None:
        raise ConfigError("--kits and --patience are for runs over --sites")
    try:
        file, overrides = split_words(parsed.words)
        config, label = _config(parsed.words) if old is None else (reopen(old, overrides, file), "")
        if config.launch.devices > 1 and started_by() == "none":
            more = [] if old is None else ["--resume", str(old)]
            return start_ranks(config.launch, ["train", *parsed.words, *more])
        return print_summary(train(config, label) if old is None else resume(old, overrides, file=file))
    except KeyboardInterrupt as error:
        folder = vars(error).get("folder", old)
        if folder is None or not any(folder.glob("checkpoints/round-*-*.pt")):
            raise KeyboardInterrupt("no round was saved yet") from error
        onward = shlex.join(["fedcmp", "train", "--resume", str(folder)])
        raise KeyboardInterrupt(f"the run goes on with: {onward}") from error


def centralized(parsed: argparse.Namespace) -> int:
    """train on the union of all clients' data (upper bound)

    The same module sees the samples of the federation, each as often, in one random order under lightning.Trainer. It
    is an upper bound only if batch size and learning rate are tuned.

    options:
      [CONFIG | key=value...]
      --tune  try all batch sizes and rates of `centralized`

    examples:
      fedcmp centralized                                             the demo's data in one place
      fedcmp centralized configs/scenarios/domain.yaml --tune        the best of the config's grid
    """
    from fedcmp.report.table import table
    from fedcmp.runs.baselines import train_centralized

    summary = train_centralized(*_config(parsed.words), tune=parsed.tune)
    if parsed.tune:
        cells = [[str(one["batch_size"]), f"{one['lr']:g}", one["val/loss"]] for one in summary["tuning"]]
        print(table(cells, ["batch size", "learning rate", "validation loss"]) + "\n")
    return print_summary(summary)


def local(parsed: argparse.Namespace) -> int:
    """train each client alone (lower bound)

    Each client trains the same module on its own samples only. Losses are means over the clients' projectors; a table
    has the loss of each client on its own domains and on all.

    options:
      [CONFIG | key=value...]

    examples:
      fedcmp local      the demo's eight clients, each alone
    """
    from fedcmp.report.summary import OWN_USE, own_use
    from fedcmp.report.table import table
    from fedcmp.runs.baselines import train_local

    summary = train_local(*_config(parsed.words))
    rows = [
        [one["name"], ", ".join(one["domains"]), one["own"], one["all"], own_use(one)]
        for one in summary["clients"].values()
    ]
    print(table(rows, ["client alone", "its domains", "validation loss on them", "on all", OWN_USE]) + "\n")
    print("means over the clients' projectors, each on the pictures of all:")
    return print_summary(summary)


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


def evaluate(parsed: argparse.Namespace) -> int:
    """evaluate the projector of finished runs

    Measures on the test samples what the run's summary reports and writes evaluation.json into the run folder.
    Overrides change the run's config, for example its data or (model.projector.init) its projector. With
    --print-lmms-eval the commands are printed that export RUN and score it on public benchmarks; nothing is run.

    options:
      RUN | key=value...  run folders and overrides
      --print-lmms-eval  print how lmms-eval scores RUN; nothing is run
      --tasks NAMES  its tasks, with commas (those that need no judge)
      --export DIR  the export of RUN, made or to be made (RUN/hf)

    examples:
      fedcmp evaluate runs/a runs/b data.test_scenes_per_camera=200       two runs on more scenes
      fedcmp evaluate runs/a --print-lmms-eval --tasks pope,mme           how to score its export
    """
    if parsed.print_lmms_eval:
        return _print_lmms_eval(parsed)
    if parsed.tasks is not None or parsed.export is not None:
        raise ConfigError("--tasks and --export need --print-lmms-eval")
    from fedcmp.federation.folder import RunFolder
    from fedcmp.report.summary import QUALITY, known_columns, quality_columns
    from fedcmp.report.table import table
    from fedcmp.runs.finished import evaluate_run

    runs, overrides = _split_runs(parsed.words)
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


def _print_lmms_eval(parsed: argparse.Namespace) -> int:
    from fedcmp.runs.lmms_eval import TASKS, lmms_eval_commands

    path, overrides = _one_run(parsed.words, "evaluate --print-lmms-eval")
    tasks = TASKS if parsed.tasks is None else [name.strip() for name in parsed.tasks.split(",")]
    found = lmms_eval_commands(path, tasks, Path(parsed.export) if parsed.export else None, overrides)
    for note in found.notes:
        print(f"# {note}", file=sys.stderr, flush=True)
    for command in found.commands:
        print(shlex.join(command))
    return 0


def caption(parsed: argparse.Namespace) -> int:
    """caption pictures with a finished run

    Prints each picture, a tab and its caption; of a folder all pictures below it, sorted. The run's data are not
    needed. Pictures that cannot be read are named on standard error, and the exit code is 1 then.

    options:
      RUN  the folder of a finished run
      PICTURE | key=value...  files, folders, and overrides
      --json  one JSON object a line: picture and caption

    examples:
      fedcmp caption runs/mine pictures/ --json > captions.jsonl            a folder
      fedcmp caption runs/mine photo.jpg model.llm=models/vicuna            the LLM has moved
    """
    from fedcmp.data.images import find_pictures, read_picture
    from fedcmp.runs.finished import load_run

    pictures, overrides = _split_runs(parsed.words)
    paths = find_pictures(pictures)
    run = load_run(parsed.run, overrides)
    size, bad = run.config.evaluation.batch_size, 0
    for begin in range(0, len(paths), size):
        read = []
        for path in paths[begin : begin + size]:
            try:
                read.append((path, read_picture(path, max_pixels=run.config.data.max_pixels)))
            except DataError as error:
                bad += 1
                print(f"fedcmp: error: {mask(str(error))}", file=sys.stderr, flush=True)
        for (path, _), text in zip(read, run.caption([picture for _, picture in read]), strict=True):
            line = json.dumps({"picture": str(path), "caption": text}, ensure_ascii=False)
            print(line if parsed.json else f"{path}\t{' '.join(text.split())}", flush=True)
    return int(bad > 0)


def serve(parsed: argparse.Namespace) -> int:
    """open a page on this machine that captions pictures

    The page on 127.0.0.1 has the captions of the run, of its projector before training, and of other runs, side by
    side; Ctrl-C ends it. Nothing leaves the machine. It needs Gradio: pip install 'fedcmp[web]'.

    options:
      RUN  the folder of a finished run
      [key=value...]  overrides, for example model.llm=PATH
      --beside RUN...  other runs, side by side with it
      --port N  of 127.0.0.1 (7860)

    examples:
      fedcmp serve runs/demo-fedcmp-1                                                 http://127.0.0.1:7860
      fedcmp serve runs/demo-fedcmp-1 --beside runs/demo-fedavg-1 --port 8000         two runs
    """
    from fedcmp.runs.finished import load_run
    from fedcmp.runs.parts import Kept
    from fedcmp.web import check_gradio, open_page

    others, overrides = _split_runs(parsed.words)
    if others:
        raise ConfigError(f"serve takes one run, got also {others[0]}; other runs: --beside RUN")
    check_gradio()
    keep = Kept()  # runs with the same models share them
    shown = {name: load_run(name, overrides, keep=keep) for name in (parsed.run, *parsed.beside)}
    first = shown.pop(parsed.run)
    shown = {parsed.run: first, "before training": first.untrained(), **shown}
    open_page({name: run.caption for name, run in shown.items()}, parsed.port or 7860)
    return 0


def export(parsed: argparse.Namespace) -> int:
    """write a run's projector in the format of transformers or LLaVA

    --to hf writes a LlavaForConditionalGeneration folder (tower, projector, LLM, processor, tokenizer, model card),
    reads it again and compares its logits with the run's. --to llava writes mm_projector.bin and config.json, as the
    original LLaVA does after its first stage. See docs/export.md.

    options:
      RUN | key=value...  a run folder, and model.llm=... if it moved
      --to hf|llava  the format (required)
      --out DIR  the new folder (required)
      --dtype T  float32 or bfloat16 (model.llm_dtype; llava: float32)
      --license L  licence for the model card
      --tower-license L  licence of the tower
      --llm-license L  licence of the LLM
      --data-license L  licence of the data

    examples:
      fedcmp export runs/demo-fedcmp-1 --to hf --out exported                          for transformers
      fedcmp export runs/mine --to llava --out stage1 --license apache-2.0             for LLaVA's second stage
    """
    from fedcmp.export.card import Licences
    from fedcmp.runs.export import export_run

    path, overrides = _one_run(parsed.words, "export")
    named = (parsed.license, parsed.tower_license, parsed.llm_license, parsed.data_license)
    licences = Licences(*(one or "unknown" for one in named))
    done = export_run(path, parsed.to, Path(parsed.out), overrides, dtype=parsed.dtype, licences=licences)
    print(f"wrote {done.folder} (--to {done.to}, {done.dtype})")
    if (proof := done.proof) is not None:
        near = f"differ by {proof.difference:.1e} of the largest" if proof.difference else "are equal to the bit"
        words = "the same" if proof.same_caption else "not the same"
        print(f"read again and asked of a picture: its logits and the run's {near}; its first words are {words}")
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
    from fedcmp.report.summary import compare_runs
    from fedcmp.report.table import table
    from fedcmp.runs.finished import open_finished

    finished: dict[Path, dict[str, Any]] = {}
    for path in map(Path, parsed.words):
        try:
            finished[path] = open_finished(path)[1]
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
    from fedcmp.report.table import markdown, table

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

    print(describe_plan(plan(_config(parsed.words)[0], parsed.ranks)))
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
    for finding in examine(_config(parsed.words)[0]):
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
    given, overrides = _split_runs(parsed.words)
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


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file, if one is given, and the overrides."""
    paths = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(paths) > 1:
        raise ConfigError(f"expected one config file, got {', '.join(paths)}; overrides are written key=value")
    return Path(paths[0]) if paths else None, [word for word in words if word not in paths]


def _config(words: Sequence[str]) -> tuple[Config, str]:
    """The config, and the label of its runs."""
    from fedcmp.config import load_config

    path, overrides = split_words(words)
    return load_config(path, overrides), path.stem if path else "demo"


def _split_runs(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders and files among words, and the overrides."""
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    return [Path(word) for word in paths], [word for word in words if word not in paths]


def _one_run(words: Sequence[str], command: str) -> tuple[Path, list[str]]:
    runs, overrides = _split_runs(words)
    if len(runs) != 1:
        raise ConfigError(f"{command} needs one run folder, got {', '.join(map(str, runs)) or 'none'}")
    return runs[0], overrides


def print_summary(summary: dict[str, Any]) -> int:
    """How the run ended; ranks other than 0 have an empty summary and print nothing."""
    from fedcmp.report.summary import describe

    if summary.get("exit") == "stopped":
        resume = f"fedcmp train --resume {summary['folder']}"
        print(f"stopped after round {summary['rounds']}; it goes on with: {resume}")
    elif summary:
        print(describe(summary, summary["folder"]))
    return 0
