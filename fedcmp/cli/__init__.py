"""The command line. Heavy imports stay inside the commands, so that help is instant."""

from fedcmp.cli.entry import main
from fedcmp.cli.pages import COMMANDS

__all__ = ["COMMANDS", "main"]
