"""summary.json, and the lines that a run ends with."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from fedcmp.report.table import table

PACKAGES = ("torch", "lightning", "transformers", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """The versions that a figure depends on."""
    from fedcmp import __version__

    return {"fedcmp": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def describe(summary: Mapping[str, Any], folder: str) -> str:
    """What the user reads at the end of a run."""
    losses = summary["val/loss"]
    rows: list[list[object]] = [[name, one["start"], one["end"]] for name, one in summary["val/domains"].items()]
    rows.append(["mean of domains", losses["start"], losses["end"]])
    parts = [table(rows, header=["validation loss per token", "start", "end"]), ""]
    test = summary["test"]
    worst = test["worst_domain"]
    facts: list[list[object]] = [
        ["test loss", f"{test['loss']:.3f} (with shuffled pictures {test['loss_shuffled']:.3f})"],
        ["worst domain", f"{worst['name']} ({worst['loss']:.3f})"],
    ]
    if "digits_named" in test:
        chance = f"{test['digits_by_chance']:.0%} with another picture's caption"
        facts.append(["digits named right", f"{test['digits_named']:.0%} ({chance})"])
    phases = ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items() if name != "total")
    facts += [
        ["seconds", f"{summary['seconds']['total']:.1f} ({phases})"],
        ["samples", f"{summary['samples_seen']:,} seen, {summary['samples_per_second']:.0f} a second in training"],
        ["run folder", folder],
    ]
    return "\n".join([*parts, table(facts)])


def compare_runs(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One row per run."""
    rows = [
        [
            one["name"],
            one["method"],
            one["seed"],
            one["samples_seen"],
            one["val/loss"]["start"],
            one["val/loss"]["end"],
            one["test"]["loss"],
            f"{one['test']['worst_domain']['name']} {one['test']['worst_domain']['loss']:.3f}",
            one["test"]["image_use"],
            round(one["seconds"]["total"]),
        ]
        for one in summaries
    ]
    header = ["run", "method", "seed", "samples", "start", "end", "test", "worst domain", "image use", "seconds"]
    return table(rows, header)
