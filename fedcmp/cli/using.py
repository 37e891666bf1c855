"""``fedcmp caption`` and ``fedcmp serve``: what a finished run is good for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fedcmp.credentials import mask
from fedcmp.errors import ConfigError, DataError


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fedcmp caption``."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("words", nargs="+", metavar="PICTURE | key=value", help="files, folders, and overrides")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: picture and caption")


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fedcmp serve``."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, for example model.llm=PATH")
    parser.add_argument("--beside", nargs="+", default=[], metavar="RUN", help="other runs, side by side with it")
    parser.add_argument("--port", type=int, default=7860, help="of 127.0.0.1 (7860)")


def caption(parsed: argparse.Namespace) -> int:
    """``fedcmp caption``; the exit code is 1 if a picture could not be read."""
    from fedcmp.data.loose import find_pictures, read_picture
    from fedcmp.runs.finished import load_run

    overrides = _overrides(parsed.words)
    paths = find_pictures([Path(word) for word in parsed.words if word not in overrides])
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
    """``fedcmp serve``: until Ctrl-C."""
    from fedcmp.runs.finished import load_run
    from fedcmp.runs.parts import Kept
    from fedcmp.web import check_gradio, open_page

    if (overrides := _overrides(parsed.words)) != parsed.words:
        raise ConfigError(f"serve takes one run and overrides, got {' '.join(parsed.words)}; other runs: --beside RUN")
    check_gradio()
    keep = Kept()  # runs with the same models share them
    run = load_run(parsed.run, overrides, keep=keep)
    shown = {parsed.run: run}
    try:
        shown["before training"] = run.untrained()
    except ConfigError as error:  # the projector that it started from has gone
        print(f"fedcmp: the projector before training is not shown: {mask(str(error))}", file=sys.stderr, flush=True)
    shown |= {other: load_run(other, overrides, keep=keep) for other in parsed.beside}
    open_page({name: one.caption for name, one in shown.items()}, parsed.port)
    return 0


def _overrides(words: Sequence[str]) -> list[str]:
    return [word for word in words if "=" in word and not Path(word).exists()]
