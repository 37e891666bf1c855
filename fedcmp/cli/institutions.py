"""``fedcmp sites`` and ``fedcmp site``, and a run over sites: what a coordinator and a hospital type."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcmp import errors
from fedcmp.errors import ConfigError, FedcmpError, check_choice

if TYPE_CHECKING:
    from fedcmp.federation.folder import RunFolder

PATIENCE = 3600.0
"""Seconds within which a site must answer, unless --patience says otherwise."""
KEYS = (
    "each .zip has the private key of its site, and who has a copy can sign as that site: delete it once it is handed "
    "over; sites cannot check that no copy was kept"
)


def sites(parsed: argparse.Namespace) -> int:
    """make the start-up kits of a federation of sites, and run its server

    `kits FILE` reads the names, the host and the port of a federation and writes a signed kit for each site, one for
    the server and one for the coordinator. `serve KIT` runs the server until SIGTERM. See docs/sites.md.

    options:
      ACTION...  kits FILE, or serve KIT
      --out DIR  kits: the new folder (kits)

    examples:
      fedcmp sites kits sites.yaml --out kits      one kit a site
      fedcmp sites serve kits/server               until SIGTERM
    """
    from fedcmp.sites.engine import engine
    from fedcmp.sites.protection import TWO_SITES
    from fedcmp.sites.settings import read_federation

    action, path = _action(parsed.words, ("kits", "serve"))
    _refuse_options(parsed, action, {"out": "kits"})
    if action == "serve":
        return engine().serve(path)
    federation = read_federation(path)
    for kit in engine().make_kits(federation, Path(parsed.out or "kits")):
        print(kit)
    print(f"note: {KEYS}", file=sys.stderr)
    if len(federation.sites) == 2:
        print(f"note: federation.secure=masks: {TWO_SITES}", file=sys.stderr)
    return 0


def site(parsed: argparse.Namespace) -> int:
    """take part in a federation as a site: an institution that keeps its data

    `init KIT` unpacks a kit into a folder with site.yaml, which says where the data and models are and what the site
    allows. `check` says what is in it, whether the kit is as it should be, and, with a run's config, what would leave
    the site. `start` answers the coordinator until SIGTERM, which ends it after the answer in flight.

    options:
      ACTION...  init KIT, check or start; and overrides of site.yaml such as policy.losses=false
      --folder DIR  the site's folder (init: named as the site; else the current one)
      --data DIR  init: a domain's folder, or a folder of domains, as `fedcmp prepare` writes them
      --tower DIR  init: the vision tower
      --llm DIR  init: the language model
      --config CONFIG  check: the config of a run

    examples:
      fedcmp site init hospital-a.zip --data data/xray --tower models/clip --llm models/vicuna      once
      fedcmp site check --config run.yaml                                                           before a run
    """
    words = [word for word in parsed.words if "=" not in word]
    overrides = [word for word in parsed.words if "=" in word]
    action = words[0] if words else ""
    check_choice("fedcmp site", action, ("init", "check", "start"))
    _refuse_options(parsed, action, {**dict.fromkeys(("data", "tower", "llm"), "init"), "config": "check"})
    here = Path(parsed.folder or ".")
    if action == "init":
        from fedcmp.sites.folder import init_site

        _, kit = _action(words, ("init",))
        given = {key: getattr(parsed, key) for key in ("data", "tower", "llm")}
        folder = init_site(kit, parsed.folder and Path(parsed.folder), given, overrides)
        print(f"{folder}/site.yaml: read its policy; then `fedcmp site check --folder {folder}`, and `start`")
        return 0
    if unused := [*words[1:], *overrides]:
        raise ConfigError(f"{unused[0]}: {action} takes no such word; edit {here}/site.yaml")
    if action == "start":
        from fedcmp.sites.engine import engine
        from fedcmp.sites.settings import read_site

        read_site(here)
        return engine().start_site(here)
    from fedcmp.sites.folder import check_site

    lines, fine = check_site(here, parsed.config and Path(parsed.config))
    print("\n".join(lines))
    return 0 if fine else 1


def is_over_sites(run: Path) -> bool:
    """Whether the clients of a run are sites."""
    from fedcmp.federation.folder import RunFolder

    return RunFolder(run).sites.is_file()


def train_at_sites(parsed: argparse.Namespace) -> int:
    """A run over sites: the coordinator's command hands it to the server, and shows what it says."""
    from fedcmp.cli.training import print_summary
    from fedcmp.config import load_config
    from fedcmp.privacy.accountant import require_library
    from fedcmp.report.files import read_object
    from fedcmp.sites.engine import find_kit, follow
    from fedcmp.sites.protection import TWO_SITES

    if parsed.resume is None:
        folder, asked = _begin(parsed)
    else:
        folder, asked = _go_on(parsed)
        if folder.summary.is_file() and (done := read_object(folder.summary))["exit"] in ("finished", "budget"):
            return print_summary({**done, "folder": str(folder.path)})
    asked["kits"] = str(Path(parsed.kits or asked.get("kits", "kits")).resolve())
    kit = find_kit(Path(asked["kits"]), asked["sites"])
    config = load_config(folder.config)
    if config.privacy.on:
        require_library()
    folder.summary.unlink(missing_ok=True)  # of where it stopped before
    if parsed.patience is not None:
        asked["patience"] = float(parsed.patience)
    folder.write_json(folder.sites, asked)
    if len(asked["sites"]) == 2 and config.federation.secure == "masks":
        print(f"note: federation.secure=masks: {TWO_SITES}", file=sys.stderr, flush=True)
    onward = f"the run goes on with: fedcmp train --resume {folder.path}"
    try:
        follow(kit, folder.path.resolve(), asked["sites"])
    except FedcmpError as error:
        raise type(error)(f"{error}; {onward}") from error
    if not folder.summary.is_file():
        print(f"fedcmp: error: it has not ended; {onward}", file=sys.stderr)
        return 1
    summary = read_object(folder.summary)
    if summary["exit"] == "failed":
        kind, _, text = summary["error"].partition(": ")
        onward = f"; {onward}" if kind == "AggregationError" else ""
        print(f"fedcmp: error: {text if hasattr(errors, kind) else summary['error']}{onward}", file=sys.stderr)
        return 1
    return print_summary({**summary, "folder": str(folder.path)})


def _begin(parsed: argparse.Namespace) -> tuple[RunFolder, dict[str, Any]]:
    """The folder of a new run, and what its sites.json has."""
    from fedcmp.cli.arguments import split_words
    from fedcmp.config import read_config, to_yaml
    from fedcmp.federation.folder import claim
    from fedcmp.sites.coordinator import coordinator_config
    from fedcmp.sites.engine import find_kit

    names = parsed.sites.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--sites: expected different names with commas between them, got {parsed.sites!r}")
    path, overrides = split_words(parsed.words)
    config = coordinator_config(read_config(path) if path else "", str(path or "overrides"), overrides)
    if len(names) < 2 and config.federation.secure == "masks":
        raise ConfigError("--sites: federation.secure=masks hides one site among others: name three or more")
    find_kit(Path(parsed.kits or "kits"), names)  # before a folder is made
    where = Path(config.run.dir).expanduser() if config.run.dir else None
    label = f"{path.stem if path else 'demo'}-sites-{config.aggregator.name}"
    folder = claim(where, config.run.name or label, number=config.run.name is None)
    folder.write_text(folder.config, to_yaml(config))
    return folder, {"sites": names, "patience": PATIENCE, "id": secrets.token_hex(4)}


def _go_on(parsed: argparse.Namespace) -> tuple[RunFolder, dict[str, Any]]:
    """The folder of a run that goes on, and what its sites.json has."""
    from fedcmp.cli.arguments import split_words
    from fedcmp.federation.folder import RunFolder
    from fedcmp.report.files import read_object
    from fedcmp.runs.train import reopen

    folder = RunFolder(Path(parsed.resume))
    path, overrides = split_words(parsed.words)
    reopen(folder.path, overrides, path)
    if not is_over_sites(folder.path):
        raise ConfigError(f"--sites: {folder.path} is no run over sites")
    asked = read_object(folder.sites)
    if parsed.sites is not None and parsed.sites.split(",") != asked["sites"]:
        raise ConfigError(f"--sites: {folder.path} has the sites {','.join(asked['sites'])}")
    return folder, {**asked, "overrides": overrides}


def _action(words: Sequence[str], choices: tuple[str, ...]) -> tuple[str, Path]:
    check_choice("the action", words[0], choices)
    if len(words) != 2:
        raise ConfigError(f"{words[0]} needs one path, got {' '.join(words[1:]) or 'none'}")
    return words[0], Path(words[1])


def _refuse_options(parsed: argparse.Namespace, action: str, of: dict[str, str]) -> None:
    """Refuses options that are of another action; ``of``: option -> its action."""
    for option, owner in of.items():
        if getattr(parsed, option) is not None and owner != action:
            raise ConfigError(f"--{option} is for {owner}, not for {action}")
