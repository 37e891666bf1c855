"""What is more than a number: histograms, the table of captions, pictures, the projector."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedcmp.tracking.wandb.records import Curves

COLUMNS = ("id", "domain", "reference", "generated")
SPLIT_BYTES = 2**20
"""A larger split.json stays in the run folder; its hash is in the config."""


def to_row(curves: Curves) -> dict[str, Any]:
    """A record as W&B takes it."""
    import wandb

    row: dict[str, Any] = dict(curves.numbers)
    row |= {key: wandb.Histogram(values) for key, values in curves.values.items()}
    for key, parts in curves.shares.items():
        edges = [part / len(parts) for part in range(len(parts) + 1)]
        row[key] = wandb.Histogram(np_histogram=(parts, edges))
    return row


def to_media(files: Sequence[Path]) -> dict[str, Any]:
    """Pictures under ``figures/<name>`` and the table ``captions``, of those files that are one of the two."""
    import wandb

    media: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in files if path.suffix == ".png"}
    for path in files:
        if path.name == "captions.jsonl":
            media["captions"] = _captions(path)
    return media


def _captions(path: Path) -> Any:
    """One row a captioned picture; the column of pictures only where some were kept."""
    import wandb

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pictures = [path.parent / row["picture"] if row.get("picture") else None for row in rows]
    shown = [wandb.Image(str(one)) if one and one.is_file() else None for one in pictures]
    columns = [*COLUMNS, "picture"] if any(shown) else [*COLUMNS]
    data = [[*(row[key] for key in COLUMNS), one][: len(columns)] for row, one in zip(rows, shown, strict=True)]
    return wandb.Table(columns=columns, data=data)


def to_artifacts(name: str, files: Sequence[Path], summary: Mapping[str, Any]) -> list[Any]:
    """The projector and, where it is small, the split.

    Args:
        name: the run's name; an artifact's keeps its letters, digits, ``-``, ``_`` and ``.``.
        files: as for ``to_media``.
        summary: what is said about the projector beside it.
    """
    import wandb

    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:100]
    told = ("method", "seed", "rounds", "projector_sha256", "val/loss", "samples_seen")
    artifacts = []
    for path in filter(Path.is_file, files):
        if path.name == "projector.safetensors":
            metadata = {key: summary[key] for key in told if key in summary}
            artifacts.append(wandb.Artifact(f"projector-{plain}", "projector", metadata=metadata))
        elif path.name == "split.json" and path.stat().st_size <= SPLIT_BYTES:
            artifacts.append(wandb.Artifact(f"split-{plain}", "split"))
        else:
            continue
        artifacts[-1].add_file(str(path), policy="immutable", skip_cache=True)  # no second copy
    return artifacts


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """What W&B would put under the home folder goes into W&B's folder of the run, unless the user says where."""
    places = {"WANDB_DATA_DIR": folder / "data", "WANDB_CACHE_DIR": folder / "cache"}
    ours = {name: str(place.resolve()) for name, place in places.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
