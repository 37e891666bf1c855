"""The command line. Heavy imports stay inside the commands, so that help is instant."""

from fedcmp.cli.entry import COMMANDS, main

__all__ = ["COMMANDS", "main"]
