"""The page of a run: headline numbers, all sections in the order of reading, and how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.measures import metric
from fedcmp.report.alone import Beside
from fedcmp.report.blocks import Fact, Listing, Page, Section, facts
from fedcmp.report.formatting import count, is_number, measured, method
from fedcmp.report.run import results
from fedcmp.report.run.clients import clients_section, split_section
from fedcmp.report.run.method import costs_section, interference_section, oscillation_section, reliability_section
from fedcmp.report.run.reading import Run
from fedcmp.report.summary import grown, quality

LONGEST = 600
"""Letters of an error that are shown."""
COMMANDS = {"federated": "train", "centralized": "centralized", "local": "local"}
BOUNDS = {"centralized": "an upper bound for a federation", "local": "a lower bound for a federation"}


def run_page(run: Run, beside: Sequence[Beside] = ()) -> Page:
    """All that a run folder has; parts that are missing are left out. ``beside``: tables that it may have a part in."""
    makers = (
        results.loss_section, results.examples_section, results.questions_section, results.alone_section,
        results.tuning_section, clients_section, split_section, interference_section, oscillation_section,
        reliability_section, costs_section, again_section,
    )  # fmt: skip
    sections = [make(run) for make in makers]
    sections.insert(makers.index(clients_section), results.beside_section(run, beside))
    unused = run.state in ("finished", "budget") and ignores_pictures(run.tested)
    planned = run.setting("federation", "rounds")
    did = [method(run.method), BOUNDS.get(run.kind, f"{len(run.rounds)} of {planned} rounds")]
    did.append(f"{len(run.split.get('sizes', ())) or len(run.clients)} clients")
    return Page(
        kind="Run",
        title=str(run.summary.get("name") or run.setting("run", "name") or run.path.resolve().name),
        lead=", ".join(did) if run.kind != "unknown" else "No round has been recorded yet.",
        state="unused" if unused else run.state,
        badge=f"{run.state}, pictures not used" if unused else run.state,
        facts=_facts(run),
        sections=sections,
        alarm=_alarm(run, unused),
    ).cleaned()


def _alarm(run: Run, unused: bool) -> str:
    rounds, error = run.summary.get("rounds", len(run.rounds)), str(run.summary.get("error", "no reason given"))
    said = {
        "failed": f"The run failed: {error if len(error) <= LONGEST else error[:LONGEST] + ' …'}",
        "budget": f"The budget of privacy allowed no round after round {rounds}.",
        "stopped": f"The run was asked to stop and did so after round {rounds}.",
        "running": f"There is no summary yet: the run goes on, or it was killed. Last recorded round: {rounds}.",
    }
    use = "The pictures do not matter: with other pictures the loss is about the same (image use is about zero)."
    whose = run.protection.get("losses", "").partition(";")[0]
    return said.get(run.state, f"{use}{f' Losses are {whose}.' * bool(whose)}" if unused else "")


def _facts(run: Run) -> list[Fact]:
    summary, last = run.summary, run.records[-1] if run.records else {}
    (at, losses), (_, spent) = run.series("val/loss"), run.series("privacy/epsilon")
    loss = losses[-1] if losses and run.kind != "local" else None
    unit = metric("val/loss").unit
    if at and at[-1] < last.get("round", 0) and not summary.get("val/loss"):  # sites that are lost take theirs along
        unit += f", at round {at[-1]:g}; later ones are not known"
    values = {
        "val/loss": (summary.get("val/loss", {}).get("end", loss), grown(summary) or unit),
        **quality(run.tested),
        "privacy/epsilon": (spent[-1] if spent else None, f"of each client, delta {run.setting('privacy', 'delta')}"),
        "samples_seen": (summary.get("samples_seen", last.get("samples_seen")), ""),
        "seconds/total": (summary.get("seconds", {}).get("total"), str(summary.get("device", ""))),
    }
    found = [
        Fact(metric(key).heading, measured(key, one), note) for key, (one, note) in values.items() if is_number(one)
    ]
    if sizes := run.split.get("splits"):
        held_out = ", ".join(f"{count(size)} {name}" for name, size in sizes.items() if name != "train")
        found.append(Fact("Samples", count(sizes.get("train")), f"train; {held_out}"))
    if run.protection:
        noise = run.protection["noise"]
        found.append(Fact("Sums", run.protection["sums"], run.protection["seen"]))
        found.append(Fact("Noise", noise, "no differential privacy" if noise == "none" else ""))
        covered = "none; privacy covers none" if noise != "none" else ""
        whose, _, kept = run.protection.get("losses", covered).partition("; ")
        found += [Fact("Losses", whose, kept)] if kept else []
    return found


def again_section(run: Run) -> Section:
    """Commands, versions and the whole config."""
    summary, done = run.summary, run.state in ("finished", "budget")
    over_sites = run.split.get("scenario") == "sites"
    folder, config, again = (shlex.quote(f"{run.path}{end}") for end in ("", "/config.yaml", "-again"))
    listings = []
    if run.config and run.kind in COMMANDS:
        sites = f" --sites {','.join(run.split['names'])}" if over_sites else ""
        sites += f" --kits {shlex.quote(run.sites['kits'])}" if "kits" in run.sites else ""
        listings.append(Listing("Run it again", f"fedcmp {COMMANDS[run.kind]} {config} run.dir={again}{sites}"))
    if run.config and run.kind == "federated" and not done:
        listings.append(Listing("Go on with it", f"fedcmp train --resume {folder}"))
    if done and run.kind != "local" and not over_sites:
        listings.append(Listing("Evaluate its projector", f"fedcmp evaluate {folder}"))
    if run.config:
        listings.append(Listing("Configuration, in full", run.config, folded=True))
    values = {
        "seed": summary.get("seed", run.setting("run", "seed")),
        "device": summary.get("device"),
        **summary.get("versions", {}),
        "commit": summary.get("commit"),
        "split": run.split.get("hash"),
        "projector, SHA-256 of its values": summary.get("projector_sha256"),
    }
    text = "The same config, seed and versions give the same projector, bit by bit, on the same kind of machine."
    if summary.get("privacy", {}).get("stream") in ("system", "sites"):
        text = "Each run has other noise, from the operating system: the same config gives another projector."
    return Section(
        "again", "How to run it again", text, grids=[facts("Versions and hashes", values)], listings=listings
    )
