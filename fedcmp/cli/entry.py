"""From words to a command, and from an error to one line and an exit code."""

from __future__ import annotations

import argparse
import os
import select
import sys
import textwrap
import time
from collections.abc import Sequence

from fedcmp.cli.pages import COMMANDS, OVERRIDES
from fedcmp.credentials import log_to_stderr, mask
from fedcmp.distributed.launch import rank_of
from fedcmp.errors import CheckpointError, ConfigError, FedcmpError, RunFolderError
from fedcmp.lifetime import end_launcher, end_with_launcher, launcher_gone


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


SILENCE = 10
"""Seconds for which a rank that has nothing to add outlives an error: a launcher blames the rank that ends first, and
ends all others at once, also one that has not said yet what went wrong."""


def _speaker(error: Exception) -> str | None:
    """What an error's line begins with; None: another rank says it. One process alone needs no introduction."""
    from fedcmp.distributed.messages import met_on

    ranks, here = met_on(error), rank_of()
    if here is None:
        return ""
    if launcher_gone():  # one sentence says so
        time.sleep(SILENCE)
        return None
    rank, local = here
    # before ranks meet they read the same words and the same folder: one on each node speaks
    read_alike = not ranks and isinstance(error, ConfigError | CheckpointError | RunFolderError)
    if (ranks and rank != ranks[0]) or (read_alike and local > 0):
        time.sleep(SILENCE)
        return None
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks or [rank]))}: "


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedcmp",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Federated pre-training of multimodal LLMs: frozen encoder and LLM, a projector trained in rounds.",
        epilog=_examples(tuple(command.examples[0] for command in COMMANDS.values()))
        + "\n\nfedcmp COMMAND --help is the manual page of a command. Exit codes: 0 done, 1 failed, 2 bad input, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say version and commit, and exit")
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


class _Version(argparse.Action):
    """The commit is looked for only where somebody asks."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        from fedcmp import __version__
        from fedcmp.version import commit, described

        print(described(__version__, commit()))
        parser.exit()


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
