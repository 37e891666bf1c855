"""Commands that train. Each docstring is the command's help; each returns the exit code."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from fedcmp.cli.arguments import load, split_words
from fedcmp.distributed.launch import started_by
from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.locking import check_free


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
    from fedcmp.cli.institutions import is_over_sites, train_at_sites

    old = None if parsed.resume is None else Path(parsed.resume)
    try:
        if started_by() == "none":  # of ranks, one may have it already
            check_free(old)
    except RunFolderError as error:
        if old is None or not is_over_sites(old):
            raise
        stop = shlex.join(["touch", f"{old}/stop"])
        raise RunFolderError(f"{error}. The server still runs it: `{stop}` ends it after its round") from error

    from fedcmp.distributed.launch import start_ranks
    from fedcmp.runs.train import reopen, resume, train

    if parsed.sites is not None or (old is not None and is_over_sites(old)):
        return train_at_sites(parsed)
    if parsed.kits is not None or parsed.patience is not None:
        raise ConfigError("--kits and --patience are for runs over --sites")
    try:
        file, overrides = split_words(parsed.words)
        config, label = load(parsed.words) if old is None else (reopen(old, overrides, file), "")
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
    from fedcmp.report.formatting import table
    from fedcmp.runs.baselines import train_centralized

    summary = train_centralized(*load(parsed.words), tune=parsed.tune)
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
    from fedcmp.report.formatting import table
    from fedcmp.report.summary import OWN_USE, own_use
    from fedcmp.runs.baselines import train_local

    summary = train_local(*load(parsed.words))
    rows = [
        [one["name"], ", ".join(one["domains"]), one["own"], one["all"], own_use(one)]
        for one in summary["clients"].values()
    ]
    print(table(rows, ["client alone", "its domains", "validation loss on them", "on all", OWN_USE]) + "\n")
    print("means over the clients' projectors, each on the pictures of all:")
    return print_summary(summary)


def print_summary(summary: dict[str, Any]) -> int:
    """How the run ended; ranks other than 0 have an empty summary and print nothing."""
    from fedcmp.report.summary import describe

    if summary.get("exit") == "stopped":
        resume = f"fedcmp train --resume {summary['folder']}"
        print(f"stopped after round {summary['rounds']}; it goes on with: {resume}")
    elif summary:
        print(describe(summary, summary["folder"]))
    return 0
