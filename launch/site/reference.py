"""Pages of the site that are made from the code each time it is built: every command's help, every public name."""

from __future__ import annotations

import argparse
import inspect

import fedcmp
from fedcmp.cli import build_parser


def commands() -> str:
    """The help of all commands."""
    (below,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    pages = [f"## fedcmp {name}\n\n```text\n{parser.format_help()}```" for name, parser in below.choices.items()]
    return "\n\n".join(["# Commands", "What `fedcmp COMMAND --help` prints.", *pages]) + "\n"


def names() -> str:
    """The docstring and parameters of all names of ``fedcmp.__all__``."""
    pages = ["# Names\n", "What `import fedcmp` offers; [examples](python.md).\n"]
    for name in fedcmp.__all__:
        found = getattr(fedcmp, name)
        text = inspect.getdoc(found) if found.__module__.startswith("fedcmp") else str(found)  # Params is an alias
        if inspect.isfunction(found):
            shown = [str(one).replace("'", "") for one in inspect.signature(found).parameters.values()]
            text = f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f")\n\n{text}"
        pages.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(pages)
