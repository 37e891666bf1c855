"""summary.json, and the lines that a run ends with."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from fedcmp.evaluation.image_use import ignores_pictures
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
    facts = _quality(summary["test"]) if summary["test"] is not None else []
    if summary.get("privacy"):
        spent = summary["privacy"]
        facts.append(["privacy of clients", f"epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}"])
    if summary.get("exit") == "budget":
        facts.append(["ended", f"after round {summary['rounds']}: the next one would exceed privacy.epsilon"])
    phases = ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items() if name != "total")
    facts += [
        ["seconds", f"{summary['seconds']['total']:.1f} ({phases})"],
        ["samples", f"{summary['samples_seen']:,} seen, {summary['samples_per_second']:.0f} a second in training"],
        ["run folder", folder],
    ]
    return "\n".join([*parts, table(facts)])


def _quality(test: Mapping[str, Any]) -> list[list[object]]:
    """What was measured on the test samples; older summaries lack some of it."""
    worst = test["worst_domain"]
    facts: list[list[object]] = [
        ["test loss", f"{test['loss']:.3f} ({test['loss_shuffled']:.3f} with pictures shuffled)"],
        ["image use", f"{image_use(test)} nats per token"],
        ["worst domain", f"{worst['name']} ({worst['loss']:.3f})"],
    ]
    if test.get("token_accuracy") is not None:
        facts.append(["tokens guessed right", f"{test['token_accuracy']:.0%} after the true ones before them"])
    if test.get("cider") is not None:
        facts.append(["captions, CIDEr-D", f"{test['cider']:.2f} (of 10)"])
    if test.get("probe"):
        probe = test["probe"]
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in probe["by_kind"].items())
        facts.append(["yes/no answers right", f"{probe['accuracy']:.0%} ({kinds}; yes {probe['yes_ratio']:.0%})"])
    if "digits_named" in test:
        chance = f"{test['digits_by_chance']:.0%} with another picture's caption"
        facts.append(["digits named right", f"{test['digits_named']:.0%} ({chance})"])
    return facts


def image_use(test: Mapping[str, Any]) -> str:
    """What the right pictures save, with its standard error where that is known.

    >>> image_use({"loss": 2.0, "image_use": 0.5, "image_use_se": 0.04}), image_use({"loss": 2.0, "image_use": 0.003})
    ('0.500 ± 0.040', '0.003 (about zero)')
    """
    error = f" ± {test['image_use_se']:.3f}" if test.get("image_use_se") is not None else ""
    return f"{test['image_use']:.3f}{error}{' (about zero)' if ignores_pictures(test) else ''}"


QUALITY = ("test", "shuffled", "image use", "worst domain", "tokens", "CIDEr-D", "yes/no", "digits named")
"""The columns of ``quality_columns``."""


def quality_columns(test: Mapping[str, Any] | None) -> list[object]:
    """What was measured on the test samples, in the columns QUALITY; None where it was not."""
    if test is None:
        return [None] * len(QUALITY)
    worst, probe = test["worst_domain"], test.get("probe") or {}
    return [
        test["loss"],
        test["loss_shuffled"],
        image_use(test) if ignores_pictures(test) else test["image_use"],
        f"{worst['name']} {worst['loss']:.3f}",
        test.get("token_accuracy"),
        test.get("cider"),
        probe.get("accuracy"),
        test.get("digits_named"),
    ]


def known_columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """A table without the columns in which nothing is known.

    >>> known_columns(["run", "a", "b"], [["x", None, 1.0], ["y", None, None]])
    (['run', 'b'], [['x', 1.0], ['y', None]])
    """
    known = [place for place in range(len(header)) if any(row[place] is not None for row in rows)]
    return [header[place] for place in known], [[row[place] for place in known] for row in rows]


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
            *quality_columns(one["test"]),
            round(one["seconds"]["total"]),
        ]
        for one in summaries
    ]
    header, rows = known_columns(["run", "method", "seed", "samples", "start", "end", *QUALITY, "seconds"], rows)
    return table(rows, header)
