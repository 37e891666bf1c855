"""What the run was told, with what it ran, and how to run it again."""

from __future__ import annotations

import shlex

from fedcmp.report.blocks import Grid, Listing, Section
from fedcmp.report.run.reading import Run
from fedcmp.report.words import count, is_number

COMMANDS = {"federated": "train", "centralized": "centralized", "local": "local"}


def rerun_section(run: Run) -> Section:
    """Commands, versions and the whole config."""
    listings = []
    folder, config = shlex.quote(str(run.path)), shlex.quote(str(run.path / "config.yaml"))
    command = COMMANDS.get(run.kind)
    if run.config and command:
        again = shlex.quote(f"{run.path}-again")
        listings.append(Listing("Run it again", f"fedcmp {command} {config} run.dir={again}"))
    if run.kind == "federated" and run.state not in ("finished", "budget") and run.config:
        listings.append(Listing("Go on with it", f"fedcmp train --resume {folder}"))
    if run.state in ("finished", "budget") and run.kind != "local":
        listings.append(Listing("Evaluate its projector", f"fedcmp evaluate {folder}"))
    if run.config:
        listings.append(Listing("Configuration, in full", run.config, folded=True))
    facts = [["seed", str(run.summary.get("seed", run.setting("run", "seed")))]]
    if device := run.summary.get("device"):
        facts.append(["device", str(device)])
    facts += [[name, str(version)] for name, version in run.summary.get("versions", {}).items()]
    if commit := run.summary.get("commit"):
        facts.append(["commit", str(commit)])
    if digest := run.split.get("hash"):
        facts.append(["split", str(digest)])
    if digest := run.summary.get("projector_sha256"):
        facts.append(["projector, SHA-256", str(digest)])
    if is_number(run.summary.get("samples_seen")):
        facts.append(["samples seen", count(run.summary["samples_seen"])])
    text = "The same config, seed and versions give the same projector, bit by bit, on the same kind of machine."
    grids = [Grid("With what it ran", ["what", "value"], facts, text_columns=2)]
    return Section("again", "How to run it again", [text], grids=grids, listings=listings)
