"""Evaluation of a finished run's projector, or of another one on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcmp.build import build_held_out, build_parts, read_data
from fedcmp.evaluation.assess import caption_pictures, measure
from fedcmp.evaluation.losses import evaluate
from fedcmp.experiment.loading import open_with_projector
from fedcmp.federation.state import params_sha256
from fedcmp.tracking.progress import Progress


def evaluate_run(path: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> dict[str, Any]:
    """Evaluates the projector of a run on the test samples of its config; writes evaluation.json.

    Args:
        path: the run folder.
        overrides: for example other data; ``model.projector.init`` names a projector in place of the run's.
        progress: bars.

    Returns:
        What it writes: ``val/loss``, ``test`` as in summary.json (whether the run itself was to be tested or not),
        ``projector``, where the projector came from, and ``projector_sha256``.
    """
    folder, config = open_with_projector(path, [*overrides, "evaluation.test=true", "evaluation.examples=0"])
    data = read_data(config)
    parts = build_parts(config, data, progress or Progress(), training=False)
    held_out, settings = build_held_out(config, data, parts), config.evaluation
    measured = measure(parts.module, parts.params, held_out, settings)
    result = {
        "val/loss": evaluate(parts.module, parts.params, parts.val_data).loss,
        "test": {**measured, **caption_pictures(parts.module, parts.params, held_out, settings).scores},
        "projector": config.model.projector.init or "untrained, as the run's seed draws it",
        "projector_sha256": params_sha256(parts.params),
    }
    folder.write_json(folder.path / "evaluation.json", result)
    return result
