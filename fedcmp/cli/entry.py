"""From words to a command, and from an error to one line and an exit code."""

from __future__ import annotations

import argparse
import inspect
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedcmp.cli import commands, comparison, preparing
from fedcmp.credentials import log_to_stderr, mask
from fedcmp.distributed.launch import rank_of
from fedcmp.errors import CheckpointError, ConfigError, FedcmpError, RunFolderError
from fedcmp.lifetime import end_launcher, end_with_launcher, launcher_gone

SILENCE = 10
"""Seconds that a rank with nothing to report outlives an error: a launcher blames the rank that ends first, and ends
all others at once, also one that has not printed yet what went wrong."""
Arguments = Callable[[argparse.ArgumentParser], object]


@dataclass(frozen=True)
class Command:
    """One command: its help is the docstring of ``run``."""

    run: Callable[[argparse.Namespace], int]
    arguments: tuple[Arguments, ...]


def _argument(*names: str, **options: object) -> Arguments:
    return lambda parser: parser.add_argument(*names, **options)  # type: ignore[arg-type]


CONFIG = _argument(
    "words", nargs="*", metavar="CONFIG | key=value",
    help="a YAML file, or a name that `fedcmp configs` lists (without one: the embedded demo), and overrides such as "
    "federation.rounds=20; aggregator=NAME is short for aggregator.name=NAME",
)  # fmt: skip
RUN = _argument("run", metavar="RUN", help="the folder of a finished run")
LICENCES = [
    _argument(f"--{part}license", metavar="L", default="unknown", help="licence for the model card")
    for part in ("", "tower-", "llm-", "data-")
]
COMMANDS: dict[str, Command] = {
    "train": Command(
        commands.train,
        (CONFIG, _argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed")),
    ),
    "centralized": Command(
        commands.centralized,
        (CONFIG, _argument("--tune", action="store_true", help="try all batch sizes and rates of `centralized`")),
    ),
    "local": Command(commands.local, (CONFIG,)),
    "compare": Command(comparison.compare, (comparison.arguments,)),
    "prepare": Command(preparing.prepare, (preparing.arguments,)),
    "report": Command(
        commands.report,
        (_argument("words", nargs="+", metavar="RUN | COMPARISON", help="run folders and comparison folders"),),
    ),
    "evaluate": Command(
        commands.evaluate,
        (
            _argument("words", nargs="+", metavar="RUN | key=value", help="run folders and overrides"),
            _argument("--print-lmms-eval", action="store_true", help="print how lmms-eval scores RUN; nothing is run"),
            _argument("--tasks", metavar="NAMES", help="its tasks, with commas (those that need no judge)"),
            _argument("--export", metavar="DIR", help="the export of RUN, made or to be made (RUN/hf)"),
        ),
    ),
    "caption": Command(
        commands.caption,
        (
            RUN,
            _argument("words", nargs="+", metavar="PICTURE | key=value", help="files, folders, and overrides"),
            _argument("--json", action="store_true", help="one JSON object a line: picture and caption"),
        ),
    ),
    "serve": Command(
        commands.serve,
        (
            RUN,
            _argument("words", nargs="*", metavar="key=value", help="overrides, for example model.llm=PATH"),
            _argument("--beside", nargs="+", default=[], metavar="RUN", help="other runs, side by side with it"),
            _argument("--port", type=int, default=7860, help="of 127.0.0.1 (7860)"),
        ),
    ),
    "export": Command(
        commands.export,
        (
            _argument(
                "words", nargs="+", metavar="RUN | key=value", help="a run folder, and model.llm=... if it moved"
            ),
            _argument("--to", required=True, metavar="hf|llava", help="the format"),
            _argument("--out", required=True, metavar="DIR", help="the new folder"),
            _argument("--dtype", metavar="T", help="float32 or bfloat16 (model.llm_dtype; llava: float32)"),
            *LICENCES,
        ),
    ),
    "table": Command(commands.table, (_argument("words", nargs="+", metavar="RUN", help="run folders"),)),
    "methods": Command(
        commands.methods,
        (
            _argument("words", nargs="*", metavar="METHOD", help="names of methods; none: all"),
            _argument("--markdown", action="store_true", help="a Markdown table"),
        ),
    ),
    "plan": Command(
        commands.plan, (CONFIG, _argument("--ranks", metavar="W", type=int, help="how many ranks (launch.devices)"))
    ),
    "doctor": Command(commands.doctor, (CONFIG,)),
    "configs": Command(
        commands.configs, (_argument("words", nargs="*", metavar="NAME", help="names of shipped configs; none: all"),)
    ),
    "validate": Command(
        commands.validate, (_argument("words", nargs="*", metavar="PATH", help="config files or folders (configs)"),)
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 141 no reader."""
    end_with_launcher()
    log_to_stderr()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not (broken := [stream for stream in (1, 2) if _is_broken(stream)]):
            raise
        for stream in broken:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)  # the interpreter flushes once more at its end
        return 141


def _is_broken(stream: int) -> bool:
    """Whether a stream is a pipe that is not read any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        return COMMANDS[parsed.command].run(parsed)
    except FedcmpError as error:
        if (who := _speaker(error)) is not None:
            print(f"{who}fedcmp: error: {mask(str(error))}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt as error:
        if (rank := rank_of()) is None or rank[0] == 0:
            print(f"fedcmp: interrupted{'; ' * bool(str(error))}{error}", file=sys.stderr, flush=True)
        end_launcher()
        return 130
    except Exception as error:
        if _speaker(error) is None:
            return 1  # the rank that met it shows its traceback
        raise


def _speaker(error: Exception) -> str | None:
    """The beginning of an error's line, which names the ranks; None: another rank prints it."""
    from fedcmp.distributed.messages import met_on

    ranks, here = met_on(error), rank_of()
    if here is None:
        return ""
    if launcher_gone():  # its one line is printed already
        time.sleep(SILENCE)
        return None
    rank, local = here
    # before ranks meet, all of them read the same words and folders: one on each node reports
    read_alike = not ranks and isinstance(error, ConfigError | CheckpointError | RunFolderError)
    if (ranks and rank != ranks[0]) or (read_alike and local > 0):
        time.sleep(SILENCE)
        return None
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks or [rank]))}: "


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedcmp",
        description="Federated pre-training of multimodal LLMs: frozen encoder and LLM, a projector trained in rounds.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print version and commit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        summary, _, text = (inspect.getdoc(command.run) or "").partition("\n\n")
        page = subparsers.add_parser(
            name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for add in command.arguments:
            add(page)
    return parser


class _Version(argparse.Action):
    """The commit is looked for only when it is asked for."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        from fedcmp import __version__
        from fedcmp.version import commit, described

        print(described(__version__, commit()))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Takes overrides and options in any order."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        found, rest = super().parse_known_args(args, namespace)
        words = [word for word in rest if not word.startswith("-")]
        if words and hasattr(found, "words"):
            found.words = [*(found.words or []), *words]
        return found, [word for word in rest if word.startswith("-")]
