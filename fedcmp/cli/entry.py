"""From words to a command, and from an error to one line and an exit code."""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import re
import select
import sys
import time
from collections.abc import Callable, Sequence

from fedcmp.cli import showing, training, using
from fedcmp.cli.comparison import compare
from fedcmp.cli.institutions import site, sites
from fedcmp.cli.preparing import prepare
from fedcmp.credentials import log_to_stderr, mask
from fedcmp.distributed.launch import rank_of
from fedcmp.errors import CheckpointError, ConfigError, FedcmpError, RunFolderError
from fedcmp.lifetime import end_launcher, end_with_launcher, launcher_gone

SILENCE = 10
"""Seconds that a rank with nothing to report outlives an error: a launcher blames the rank that ends first, and ends
all others at once, also one that has not printed yet what went wrong."""
CONFIG = (
    "a YAML file, or a name that `fedcmp configs` lists (without one: the embedded demo), and overrides such as "
    "federation.rounds=20; aggregator=NAME is short for aggregator.name=NAME"
)
OPTION = re.compile(r"(?P<names>-[^\s,]+(?:, -[^\s,]+)*)?(?: ?(?P<metavar>\S.*?))?(?:  +(?P<help>\S.*))?")
"""A line of a handler's options: ``--out DIR  the new folder``, or ``WORDS...  what they are`` of what has no name."""
COLLECT = (100_000, 10, 10)
"""New objects between two looks for garbage. Packages make hundreds of thousands while they are imported, all of which
stay: with Python's 700, looking through them is a tenth of a start."""
Handler = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, Handler] = {
    handler.__name__: handler
    for handler in (
        training.train, training.centralized, training.local, compare, prepare, showing.report, using.evaluate,
        using.caption, using.serve, using.export, showing.table, showing.methods, showing.plan, showing.doctor,
        showing.configs, showing.validate, sites, site,
    )
}  # fmt: skip
"""Every command; its help and its options are its docstring."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 141 no reader."""
    gc.set_threshold(*COLLECT)
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
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(arguments: Sequence[str] | None) -> int:
    parsed = build_parser().parse_args(arguments)
    try:
        return COMMANDS[parsed.command](parsed)
    except KeyboardInterrupt as error:
        if (rank_of() or (0, 0))[0] == 0:
            print(f"fedcmp: interrupted{'; ' * bool(str(error))}{error}", file=sys.stderr, flush=True)
        end_launcher()
        return 130
    except Exception as error:
        ranks = _reporting_ranks(error)
        if ranks is None:  # another rank reports it
            time.sleep(SILENCE)
            return 2 if isinstance(error, ValueError) else 1
        if not isinstance(error, FedcmpError):
            raise
        print(f"{ranks}fedcmp: error: {mask(str(error))}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ValueError) else 1


def _reporting_ranks(error: Exception) -> str | None:
    """Which ranks the line of an error names: ``ranks 1, 3: ``, or nothing of one process; None: it is not printed."""
    here = rank_of()
    if here is None:
        return ""

    from fedcmp.distributed.messages import met_on

    ranks = met_on(error)
    # before ranks meet, all of them read the same words and folders: one on each node reports
    read_alike = not ranks and isinstance(error, ConfigError | CheckpointError | RunFolderError)
    if launcher_gone() or (ranks and here[0] != ranks[0]) or (read_alike and here[1] > 0):
        return None
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks or here[:1]))}: "


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, made of the docstrings of their handlers."""
    parser = argparse.ArgumentParser(
        prog="fedcmp",
        description="Federated pre-training of multimodal LLMs: frozen encoder and LLM, a projector trained in rounds.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print version and commit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, handler in COMMANDS.items():
        summary, _, text = (inspect.getdoc(handler) or "").partition("\n\n")
        about, _, rest = text.partition("options:\n")
        options, _, examples = rest.partition("\n\n")
        page = subparsers.add_parser(
            name, help=summary, description=f"{about}{examples}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for line in options.splitlines():
            _add_option(page, line.strip())
    return parser


def _add_option(page: argparse.ArgumentParser, line: str) -> None:
    """Adds what a line says: ``N`` is a number, ``a|b`` a choice, ``WORD...`` one or more, ``[WORD...]`` none or more.

    An option with ``,...`` may be repeated, one without a metavar is a switch, one with (required) at its end is so.
    """
    found = OPTION.fullmatch(line)
    assert found is not None, line
    names, metavar, help_text = (found[part] or "" for part in ("names", "metavar", "help"))
    options: dict[str, object] = {"metavar": metavar.strip("[]").removesuffix("...").removesuffix(",") or None}
    if not names:
        several = metavar.strip("[]").endswith("...")
        options |= {"nargs": "*" if metavar.startswith("[") else "+"} if several else {}
        page.add_argument("words" if several else metavar.lower(), help=help_text or CONFIG, **options)  # type: ignore[arg-type]
        return
    if not metavar:
        options = {"action": "store_true"}
    elif metavar.endswith(",..."):
        options |= {"action": "append"}
    elif metavar.endswith("..."):
        options |= {"nargs": "+", "default": []}
    elif metavar == "N":
        options |= {"type": int}
    elif "|" in metavar:
        options |= {"choices": metavar.split("|")}
    if help_text.endswith("(required)"):
        options |= {"required": True}
    page.add_argument(*names.split(", "), help=help_text.replace("%", "%%"), **options)  # type: ignore[arg-type]


class _Version(argparse.Action):
    """The commit is looked for only when it is asked for."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        from fedcmp import __version__
        from fedcmp.version import commit, described

        print(described(__version__, commit()))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Of one command. Takes overrides and options in any order."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        found, rest = super().parse_known_args(args, namespace)
        words = [word for word in rest if not word.startswith("-")]
        if words and hasattr(found, "words"):
            found.words = [*(found.words or []), *words]
        if options := [word for word in rest if word.startswith("-")]:
            self.error(f"unrecognized arguments: {' '.join(options)}")  # here, so that usage is the command's
        return found, []
