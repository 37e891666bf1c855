"""The command line. Heavy imports stay inside the commands, so that help is instant."""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedcmp.errors import CheckpointError, ConfigError, FedcmpError, RunFolderError

if TYPE_CHECKING:
    from fedcmp.config import Config

OVERRIDES = """\
CONFIG is a YAML file; without one the embedded demo is run. key=value overrides any setting, for example
federation.rounds=20 or run.dir=somewhere; aggregator=NAME is short for aggregator.name=NAME. A wrong key, name or
value is named together with the nearest valid one, before any model is loaded."""


@dataclass(frozen=True)
class Command:
    """One command: what it does, and how its manual page reads."""

    run: Callable[[argparse.Namespace], int]
    summary: str
    description: str
    examples: tuple[tuple[str, str], ...]
    arguments: Callable[[argparse.ArgumentParser], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="fedcmp: %(message)s")
    parsed = _parser().parse_args(arguments)
    try:
        return COMMANDS[parsed.command].run(parsed)
    except FedcmpError as error:
        if (who := _speaker(error)) is not None:
            print(f"{who}fedcmp: error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("fedcmp: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if _speaker(error) is None:
            return 1  # the rank that met it shows its traceback
        raise


SILENCE = 10
"""Seconds for which a rank that has nothing to add outlives an error: a launcher blames the rank that ends first, and
ends all others at once, also one that has not said yet what went wrong."""


def _speaker(error: Exception) -> str | None:
    """What an error's line begins with; None: another rank says it. One process alone needs no introduction."""
    from fedcmp.distributed.failures import met_on
    from fedcmp.distributed.starter import rank_of

    ranks, here = met_on(error), rank_of()
    if here is None:
        return ""
    rank, local = here
    # before ranks meet they read the same words and the same folder: one on each node speaks
    read_alike = not ranks and isinstance(error, ConfigError | CheckpointError | RunFolderError)
    if (ranks and rank != ranks[0]) or (read_alike and local > 0):
        time.sleep(SILENCE)
        return None
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks or [rank]))}: "


def _train(parsed: argparse.Namespace) -> int:
    from fedcmp.distributed.launch import start_ranks, started_by
    from fedcmp.experiment import reopen, resume, train

    old = None if parsed.resume is None else Path(parsed.resume)
    file, overrides = _split(parsed.words)
    config, label = _config(parsed.words) if old is None else (reopen(old, overrides, file), "")
    if config.launch.devices > 1 and started_by() == "nobody":
        start_ranks(config.launch, ["train", *parsed.words, *([] if old is None else ["--resume", str(old)])])
    return _tell(train(config, label) if old is None else resume(old, overrides, file=file))


def _centralized(parsed: argparse.Namespace) -> int:
    from fedcmp.experiment import train_centralized

    config, label = _config(parsed.words)
    summary = train_centralized(config, label, tune=parsed.tune)
    if parsed.tune:
        from fedcmp.report.table import table

        cells = [[str(one["batch_size"]), f"{one['lr']:g}", one["val/loss"]] for one in summary["tuning"]]
        print(table(cells, ["batch size", "learning rate", "validation loss"]) + "\n")
    return _tell(summary)


def _local(parsed: argparse.Namespace) -> int:
    from fedcmp.experiment import train_local
    from fedcmp.report.table import table

    config, label = _config(parsed.words)
    summary = train_local(config, label)
    rows = [[client, ", ".join(one["domains"]), one["own"], one["all"]] for client, one in summary["clients"].items()]
    print(table(rows, ["client", "its domains", "loss on them", "loss on all"]) + "\n")
    return _tell(summary)


def _evaluate(parsed: argparse.Namespace) -> int:
    from fedcmp.experiment import evaluate_run
    from fedcmp.report.table import table

    runs = [Path(word) for word in parsed.words if "=" not in word or Path(word).exists()]
    overrides = [word for word in parsed.words if Path(word) not in runs]
    if not runs:
        raise ConfigError("evaluate needs a run folder, for example: fedcmp evaluate runs/demo-fedavg-1")
    header = ["run", "loss", "shuffled", "image use", "worst domain"]
    rows, scored = [], False
    for path in runs:
        result = evaluate_run(path, overrides)
        worst = f"{result['worst_domain']['name']} {result['worst_domain']['loss']:.3f}"
        rows.append([str(path), result["val/loss"], result["val/loss_shuffled"], result["image_use"], worst])
        scored = scored or "digits_named" in result
        rows[-1].append(result.get("digits_named"))
    print(table(rows if scored else [row[:-1] for row in rows], [*header, "digits named"] if scored else header))
    return 0


def _compare_folders(parsed: argparse.Namespace) -> int:
    import json

    from fedcmp.report.summary import compare_runs

    summaries = []
    for word in parsed.words:
        path = Path(word) / "summary.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {path}: {error}") from error
        if "val/loss" not in content:
            raise RunFolderError(f"{word} did not finish: {content.get('error', 'no losses in its summary')}")
        summaries.append(content)
    print(compare_runs(summaries))
    return 0


def _rules(parsed: argparse.Namespace) -> int:
    from fedcmp.aggregation.presets import describe_rules
    from fedcmp.report.table import markdown, table

    header, rows = describe_rules(parsed.words)
    print(markdown(rows, header) if parsed.markdown else table(rows, header))
    return 0


def _plan(parsed: argparse.Namespace) -> int:
    from fedcmp.experiment import plan
    from fedcmp.report.plan import describe_plan

    print(describe_plan(plan(_config(parsed.words)[0], parsed.ranks)))
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from fedcmp.doctor import examine

    worst = "ok"
    for finding in examine(_config(parsed.words)[0]):
        print(finding.line(), flush=True)
        worst = "fatal" if "fatal" in (worst, finding.status) else worst
    return int(worst == "fatal")


def _validate(parsed: argparse.Namespace) -> int:
    from fedcmp.config import load_config

    files: list[Path] = []
    for word in parsed.words or ["configs"]:
        path = Path(word)
        if not path.exists():
            raise ConfigError(f"no config file or folder {path}")
        files += sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no .yaml file in {', '.join(parsed.words or ['configs'])}")
    wrong = 0
    for file in files:
        try:
            load_config(file)
            print(f"ok     {file}")
        except FedcmpError as error:
            wrong += 1
            print(f"wrong  {file}: {error}")
    print(f"{len(files)} configs, {wrong} wrong")
    return 2 if wrong else 0


def _config(words: Sequence[str]) -> tuple[Config, str]:
    """The config, and what its runs are called."""
    from fedcmp.config import load_config

    path, overrides = _split(words)
    return load_config(path, overrides), path.stem if path else "demo"


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file, if one is given, and the overrides."""
    paths = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(paths) > 1:
        raise ConfigError(f"expected one config file, got {', '.join(paths)}; overrides are written key=value")
    return Path(paths[0]) if paths else None, [word for word in words if word not in paths]


def _tell(summary: dict) -> int:
    """Rank 0 tells how the run ended; the summary of other ranks is empty."""
    from fedcmp.report.summary import describe

    if summary.get("exit") == "stopped":
        folder = summary["folder"]
        print(f"stopped after round {summary['rounds']}; it goes on with: fedcmp train --resume {folder}")
    elif summary:
        print(describe(summary, summary["folder"]))
    return 0


def _words(what: str, help_text: str, least: str = "*") -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs=least, metavar=what, help=help_text)

    return add


def _tunable(parser: argparse.ArgumentParser) -> None:
    _words("CONFIG | key=value", "a config file and overrides")(parser)
    parser.add_argument("--tune", action="store_true", help="try every batch size and learning rate of `centralized`")


def _resumable(parser: argparse.ArgumentParser) -> None:
    _words("CONFIG | key=value", "a config file and overrides")(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed")


def _plannable(parser: argparse.ArgumentParser) -> None:
    _words("CONFIG | key=value", "a config file and overrides")(parser)
    parser.add_argument("--ranks", metavar="W", type=int, help="how many ranks; without it: launch.devices")


def _rule_words(parser: argparse.ArgumentParser) -> None:
    _words("RULE", "names of rules; none: all")(parser)
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")


COMMANDS: dict[str, Command] = {
    "train": Command(
        _train,
        "train a projector in federated rounds",
        f"""\
        Trains the projector between a frozen vision tower and a frozen LLM: each client on its own pairs, fused by the
        aggregator in rounds. Writes a run folder (runs/NAME, or run.dir) with config.yaml, split.json, metrics.jsonl,
        summary.json, projector.safetensors, captions.png and checkpoints/, and ends with a table.

        SIGUSR1 or SIGTERM stops a run at the end of its round; --resume goes on from the last checkpoint. Under `fabric
        run`, torchrun or srun each rank runs the same command, and clients are dealt to groups of ranks.

        {OVERRIDES}""",
        (
            ("fedcmp train", "the embedded demo: eight clients, digit scenes, about a minute"),
            ("fedcmp train federation.rounds=4 aggregator=fedadam", "fewer rounds, another rule"),
            ("fedcmp train configs/scenarios/domain.yaml run.dir=runs/mine", "real pairs, a folder of your choice"),
            ("fedcmp train --resume runs/mine", "go on after a kill, to the bits of an uninterrupted run"),
            ("fedcmp train launch.devices=2", "two processes; the same bits"),
        ),
        _resumable,
    ),
    "centralized": Command(
        _centralized,
        "train on the union of all clients' data (upper bound)",
        f"""\
        Gives the samples that the federation would see, each as often, in one random order to the same module under
        lightning.Trainer. It is an upper bound only if its batch size and learning rate are tuned: see --tune.

        {OVERRIDES}""",
        (
            ("fedcmp centralized", "the demo's data in one place"),
            ("fedcmp centralized configs/scenarios/domain.yaml --tune", "the best of the grid that the config states"),
        ),
        _tunable,
    ),
    "local": Command(
        _local,
        "train each client alone (lower bound)",
        f"""\
        Each client trains the same module under lightning.Trainer on nothing but its own samples. The losses are means
        over the clients' projectors; a table shows each client on its own domains and on all.

        {OVERRIDES}""",
        (("fedcmp local", "the demo's eight clients, each alone"),),
        _words("CONFIG | key=value", "a config file and overrides"),
    ),
    "evaluate": Command(
        _evaluate,
        "evaluate the projector of finished runs",
        """\
        Loads config.yaml and projector.safetensors of each run folder, measures the loss on the held-out samples with
        right and with shuffled pictures, and writes evaluation.json into the folder. Overrides change the run's config,
        for example to evaluate on other data.""",
        (
            ("fedcmp evaluate runs/demo-fedavg-1", "one run"),
            ("fedcmp evaluate runs/a runs/b data.val_scenes_per_camera=200", "two runs on more scenes"),
        ),
        _words("RUN | key=value", "run folders and overrides", "+"),
    ),
    "table": Command(
        _compare_folders,
        "show finished runs in one table",
        """\
        Reads summary.json of each run folder and prints a row for each. Nothing is computed.""",
        (("fedcmp table runs/domain-*", "all runs of a scenario"),),
        _words("RUN", "run folders", "+"),
    ),
    "rules": Command(
        _rules,
        "show the table of aggregation rules",
        """\
        One row per rule: what clients do differently in their steps, how their updates are fused, the server step, what
        clients must record, whether the server sees sums only (its memory then does not depend on the number of
        clients), and the paper. `aggregator=NAME` picks a row; `aggregator.fuse.rule=NAME` and its like exchange a
        part.""",
        (("fedcmp rules", "all of them"), ("fedcmp rules fedcmp krum --markdown", "two, for a document")),
        _rule_words,
    ),
    "plan": Command(
        _plan,
        "say what a run would do, before anything is loaded",
        f"""\
        Which rank trains which clients of round 1, where and in which wave; rounds, samples and steps of every client;
        what the rule needs; the bytes of a round, as bytes/... of metrics.jsonl will have them if every update is
        accepted (from .. to, where the data decide); the memory of a rank, estimated. Records are read; no picture and
        no weight is. What a run would refuse is refused here.

        {OVERRIDES}""",
        (
            ("fedcmp plan", "the embedded demo on one rank"),
            ("fedcmp plan configs/scenarios/domain.yaml --ranks 4", "the same run on four"),
            ("fedcmp plan --ranks 4 launch.group_size=2 federation.slots=4", "two groups of two, four clients at once"),
        ),
        _plannable,
    ),
    "doctor": Command(
        _doctor,
        "check machine, environment and config, and say what to do",
        f"""\
        A line for each check: `ok`, `warn` (a run works, but not as it could) or `fatal` (it would fail), what was
        found, and after -> what to do. Python and packages, devices, threads, a process group of two ranks, SLURM,
        left-overs of launchers, Weights & Biases, disk and permissions, data, the embedded demo, and the folders that
        CONFIG names. Nothing is changed and no key is shown. The exit code is 1 if anything is fatal.

        {OVERRIDES}""",
        (
            ("fedcmp doctor", "this machine"),
            ("fedcmp doctor configs/scenarios/domain.yaml run.device=cuda", "and what this run needs"),
        ),
        _words("CONFIG | key=value", "a config file and overrides"),
    ),
    "validate": Command(
        _validate,
        "check config files",
        """\
        Reads every .yaml file given, or in the folders given (default: configs), and checks keys, names and values. No
        data or model is opened.""",
        (
            ("fedcmp validate", "everything in configs/"),
            ("fedcmp validate mine.yaml", "one file"),
        ),
        _words("PATH", "config files or folders"),
    ),
}


def _parser() -> argparse.ArgumentParser:
    from fedcmp import __version__

    parser = argparse.ArgumentParser(
        prog="fedcmp",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Federated pre-training of multimodal LLMs: frozen encoder and LLM, a projector trained in rounds.",
        epilog=_examples(tuple(command.examples[0] for command in COMMANDS.values()))
        + "\n\nfedcmp COMMAND --help is the manual page of a command. Exit codes: 0 done, 1 failed, 2 bad input.",
    )
    parser.add_argument("--version", action="version", version=f"fedcmp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        page = commands.add_parser(
            name,
            help=command.summary,
            description=textwrap.dedent(
                command.description.replace(OVERRIDES, textwrap.indent(OVERRIDES, " " * 8)[8:])
            ),
            epilog=_examples(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(page)
    return parser


class _Parser(argparse.ArgumentParser):
    """Lets overrides and options stand in any order."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        found, rest = super().parse_known_args(args, namespace)
        words = [word for word in rest if not word.startswith("-")]
        if words and hasattr(found, "words"):
            found.words = [*(found.words or []), *words]
        return found, [word for word in rest if word.startswith("-")]


def _examples(examples: Sequence[tuple[str, str]]) -> str:
    return "examples:\n" + "\n".join(f"  {line}\n      {what}" for line, what in examples)
