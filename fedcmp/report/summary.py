"""The lines that a run ends with, and tables of several runs."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.measures import METRICS
from fedcmp.report.formatting import is_number, known_columns, measured, number, table

PACKAGES = ("torch", "lightning", "transformers", "numpy", "safetensors")
_COLUMNS = (
    "test/loss", "test/loss_shuffled", "test/image_use", "test/worst_domain", "test/token_accuracy", "test/cider",
    "test/probe", "test/digits_named",
)  # fmt: skip
OWN_USE = "image use on their test pictures"
"""The heading of ``own_use``."""
GROWN = 0.02
"""A validation loss is named as grown from this share above its lowest on."""
QUALITY = tuple(METRICS[key].title for key in _COLUMNS)
"""The columns of ``quality_columns``."""


def versions() -> dict[str, str]:
    """The versions of Python, of fedcmp and of the packages that change its numbers."""
    from fedcmp import __version__

    return {"fedcmp": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def quality(test: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Metric -> value and note, of what was measured on the test samples.

    >>> quality({"loss": 2.0, "loss_shuffled": 2.003, "image_use": 0.003})["test/image_use"]
    (0.003, 'standard error not known, about zero')
    >>> quality({"loss": 0.5, "loss_shuffled": 0.53, "image_use": 0.03, "image_use_se": 0.02})["test/image_use"]
    (0.03, '± 0.020 standard error, uncertain')
    """
    worst, probe, chance = test.get("worst_domain") or {}, test.get("probe") or {}, test.get("digits_by_chance")
    spread = test.get("image_use_se")
    error = f"± {number(spread)} standard error, " if is_number(spread) else "standard error not known, "
    use = "uncertain" if is_number(spread) and test["image_use"] < 2 * spread else "nats that the right picture saves"
    use = "about zero" if ignores_pictures(test) else use
    found = {
        "test/loss": (test.get("loss"), f"{number(test.get('loss_shuffled'))} with shuffled pictures"),
        "test/image_use": (test.get("image_use"), error + use),
        "test/worst_domain": (worst.get("loss"), str(worst.get("name", ""))),
        "test/token_accuracy": (test.get("token_accuracy"), "after the true tokens before them"),
        "test/cider": (test.get("cider"), "of greedy captions, at most 10"),
        "test/probe": (
            probe.get("accuracy"),
            ", ".join(["chance 50%", *(f"{kind} {share:.0%}" for kind, share in probe.get("by_kind", {}).items())]),
        ),
        "test/digits_named": (
            test.get("digits_named"), f"{chance:.0%} with another picture's caption" if is_number(chance) else "",
        ),
    }  # fmt: skip
    return {key: (value, note) for key, (value, note) in found.items() if is_number(value)}


def own_use(client: Mapping[str, Any]) -> str:
    """Image use of a client's own projector on its own test pictures, from an entry of a local run's summary.

    >>> own_use({"image_use": {"own": 0.2, "own_se": 0.01}}), own_use({"image_use": {"own": 0.2, "own_se": 0.2}})
    ('0.200 ± 0.010', '0.200 ± 0.200, uncertain')
    """
    use, error = (client.get("image_use", {}).get(key) for key in ("own", "own_se"))
    if not is_number(use):
        return "-"
    spread = f" ± {number(error)}" if is_number(error) else ""
    return number(use) + spread + (", uncertain" if is_number(error) and use < 2 * error else "")


def grown(summary: Mapping[str, Any]) -> str:
    """Where validation loss was lowest, if it is clearly higher at the end; else empty.

    >>> grown({"val/loss": {"start": 2.0, "end": 0.51, "best": 0.4, "best_round": 3}})
    'grew again: lowest after round 3, 0.400; at the end 0.510'
    """
    losses = summary.get("val/loss") or {}
    if losses.get("best_round") is None or not losses["end"] > (1 + GROWN) * losses["best"]:
        return ""
    when = "at evaluation" if summary.get("method") == "centralized" else "after round"
    lowest = f"lowest {when} {losses['best_round']}, {number(losses['best'])}"
    return f"grew again: {lowest}; at the end {number(losses['end'])}"


def describe(summary: Mapping[str, Any], folder: str) -> str:
    """The end of a run: losses by domain, quality, time."""
    seconds, spent, domains = dict(summary["seconds"]), summary.get("privacy"), summary.get("val/domains", {})
    rows: list[list[object]] = [[name, one["start"], one["end"]] for name, one in domains.items()]
    if losses := summary.get("val/loss"):  # sites may keep theirs
        rows.append(["mean of domains", losses["start"], losses["end"]])
    facts = [
        [METRICS[key].title, f"{measured(key, value)} ({note})"]
        for key, (value, note) in quality(summary["test"] or {}).items()
    ]
    if found := grown(summary):
        facts.insert(0, [METRICS["val/loss"].title, found])
    if spent:
        facts.append(["privacy of clients", f"epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}"])
    if spent and not losses:
        facts.append(["losses", "none: over sites privacy covers none"])
    if summary.get("exit") == "budget":
        facts.append(["ended", f"after round {summary['rounds']}: the next one would exceed privacy.epsilon"])
    total = seconds.pop("total")
    seconds["other"] = max(0.0, total - sum(seconds.values()))  # reading the data, starting, drawing
    parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    speed = summary["samples_per_second"]
    fast = f", {speed:.0f} a second in training" if is_number(speed) else ""
    facts += [
        ["seconds", f"{total:.1f} ({parts})"],
        ["samples", f"{summary['samples_seen']:,} seen{fast}"],
        ["run folder", folder],
        ["its page", f"{_program()} report {shlex.quote(folder)}"],
    ]
    shown = [table(rows, header=["validation loss per token", "start", "end"])] if rows else []
    return "\n\n".join([*shown, table(facts)])


def _program() -> str:
    """``fedcmp``, or where it is if it is not on the PATH, as after ``launch/quickstart``."""
    beside = Path(sys.executable).with_name("fedcmp")
    return "fedcmp" if shutil.which("fedcmp") or not beside.is_file() else shlex.quote(os.path.relpath(beside))


def quality_columns(test: Mapping[str, Any] | None) -> list[object]:
    """The values of the columns QUALITY; None where one was not measured."""
    if test is None:
        return [None] * len(QUALITY)
    found: dict[str, object] = {key: value for key, (value, _) in quality(test).items()}
    found["test/loss_shuffled"] = test["loss_shuffled"]
    found["test/worst_domain"] = f"{test['worst_domain']['name']} {test['worst_domain']['loss']:.3f}"
    if ignores_pictures(test):
        found["test/image_use"] = f"{test['image_use']:.3f} (about zero)"
    return [found.get(key) for key in _COLUMNS]


def compare_runs(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One row per run."""
    rows = []
    for one in summaries:
        loss, row = one.get("val/loss", {}), [one["name"], one["method"], one["seed"], one["samples_seen"]]
        losses, seconds = [loss.get("start"), loss.get("end")], round(one["seconds"]["total"])
        rows.append([*row, *losses, *quality_columns(one["test"]), seconds])
    header, rows = known_columns(["run", "method", "seed", "samples", "start", "end", *QUALITY, "seconds"], rows)
    return table(rows, header)
