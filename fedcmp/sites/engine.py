"""The engine that carries messages between machines, and a run that is handed to it and followed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from fedcmp.errors import ConfigError, check_choice
from fedcmp.federation.folder import RunFolder
from fedcmp.lifetime import stop_on_signal
from fedcmp.report.files import read_object
from fedcmp.sites.feedback import Tail
from fedcmp.sites.protection import OF_TWO, of_two
from fedcmp.sites.settings import LISTED

WAIT = 120.0
"""Seconds in which sites may still connect before a run."""
STOP = "stop"
"""A file in the run folder that asks the run to stop at the end of its round."""

TOLD = "sites.log"
"""In the run folder: what the coordinator tells people about the sites."""


def engine() -> ModuleType:
    """``fedcmp.sites.nvflare``.

    Raises:
        ConfigError: NVFlare is not installed.
    """
    try:
        from fedcmp.sites import nvflare
    except ImportError as error:
        how = "pip install 'fedcmp[sites]', in a checkout pip install -c constraints.txt -e '.[sites]'"
        raise ConfigError(f"sites need NVFlare ({error}): {how}") from error
    return nvflare


def find_kit(kits: Path, sites: Sequence[str]) -> Path:
    """The coordinator's own kit, in the folder that ``fedcmp sites kits`` has made for these ``sites``, or for more.

    Raises:
        ConfigError: it is not there, or made for others, or NVFlare is not installed.
    """
    if not (kits / "admin").is_dir():
        raise ConfigError(
            f"there is no {kits / 'admin'}: name the folder that `fedcmp sites kits` wrote with --kits DIR"
        )
    known = read_object(kits / "admin" / LISTED).get("sites", sites)
    for site in sites:
        check_choice("--sites", site, known)
    engine()
    return kits / "admin"


def follow(kit: Path, run: Path, sites: Sequence[str]) -> None:
    """Hands a run folder to the server, and prints its rounds until it has ended.

    SIGTERM, SIGUSR1 or Ctrl-C stops the run at the end of its round; a second Ctrl-C ends it at once.

    Args:
        kit: the coordinator's own.
        run: the run folder, on the server's machine.
        sites: their names, in the order of the clients.

    Raises:
        FedcmpError: the server cannot be reached, or is lost; sites do not connect.
    """
    carrier, folder = engine(), RunFolder(run)
    seen, told = len(_records(folder)), Tail(run / TOLD)
    (run / STOP).unlink(missing_ok=True)
    said: list[list[str]] = []
    stops = "the run stops at the end of its round; Ctrl-C"

    def waiting(missing: list[str]) -> None:
        if missing not in said:
            said.append(missing)
            print(f"waiting for {', '.join(missing)}", file=sys.stderr, flush=True)

    job = carrier.submit(kit, run, sites, wait=WAIT, on_wait=waiting)
    print(f"{run} was handed to the server as job {job}", file=sys.stderr, flush=True)
    with stop_on_signal() as asked:

        def tick(*_: object) -> None:
            nonlocal seen
            for line in told.lines():
                print(line, file=sys.stderr, flush=True)
            for record in _records(folder)[seen:]:
                seen += 1
                print(describe(record, sites), file=sys.stderr, flush=True)
            if asked() and not (run / STOP).exists():
                print(f"{stops} twice ends it at once", file=sys.stderr, flush=True)
                (run / STOP).touch()

        try:
            carrier.follow(kit, job, on_tick=tick)
        except KeyboardInterrupt:
            print(f"{stops} again ends it at once", file=sys.stderr, flush=True)
            (run / STOP).touch()
            try:
                carrier.follow(kit, job, on_tick=tick)
            except KeyboardInterrupt:
                carrier.abort(kit, job)
                raise
        tick()
    (run / STOP).unlink(missing_ok=True)


def name_losses(losses: Mapping[str, object]) -> str:
    """Losses by domain, as ``noisy 0.412, paper 0.502``."""
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())


def describe(record: Mapping[str, object], sites: Sequence[str]) -> str:
    """A round in a line; ``sites`` in the order of the clients."""
    words = [f"round {record['round']}"]
    if "sites/ended" in record:
        words[0] += " ended without a change"
    for key, what in (("train/loss", "train loss"), ("val/loss", "validation loss")):
        if isinstance(value := record.get(key), float):
            words.append(f"{what} {value:.3f}")
    domains = {key.removeprefix("val/loss/"): loss for key, loss in record.items() if key.startswith("val/loss/")}
    if domains and "val/loss" not in record:
        words.append(f"validation loss of {name_losses(domains)} only")
    if len(sites) > 2 and "secure/sums" in record and of_two(record):
        words.append(OF_TWO)
    faults = [(name, record.get(f"client/{client}/left_out")) for client, name in enumerate(sites)]
    words += [f"{name} left out: {why}" for name, why in faults if why not in (None, "ended")]
    return ", ".join(words)


def _records(folder: RunFolder) -> list[dict[str, object]]:
    if not folder.metrics.is_file():
        return []
    lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
