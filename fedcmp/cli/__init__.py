"""The command line. Heavy imports stay inside the commands, so that help is instant."""

from fedcmp.cli.entry import COMMANDS, build_parser, main

__all__ = ["COMMANDS", "build_parser", "main"]
