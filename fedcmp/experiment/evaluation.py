"""Evaluation of a finished run's projector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcmp.build import build_held_out, build_parts, check_models, read_data
from fedcmp.config import load_config
from fedcmp.evaluation.assess import caption_pictures, measure
from fedcmp.evaluation.losses import evaluate
from fedcmp.federation.checkpoint import load_projector
from fedcmp.federation.folder import open_run
from fedcmp.federation.state import params_sha256
from fedcmp.tracking.progress import Progress


def evaluate_run(path: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> dict[str, Any]:
    """Evaluates the projector of a run on the test samples of its config; writes evaluation.json.

    Returns:
        What it writes: ``val/loss``, ``test`` as in summary.json (whether the run itself was to be tested or not), and
        ``projector_sha256``.
    """
    folder = open_run(path)
    projector = f"model.projector.init={json.dumps(str(folder.projector))}"
    config = load_config(folder.config, [*overrides, projector, "evaluation.test=true", "evaluation.examples=0"])
    check_models(config)
    data = read_data(config)
    parts = build_parts(config, data, progress or Progress(), training=False)
    params = {name: value.to(next(iter(parts.params.values())).device) for name, value in parts.params.items()}
    held_out, settings = build_held_out(config, data, parts), config.evaluation
    measured = measure(parts.module, params, held_out, settings)
    result = {
        "val/loss": evaluate(parts.module, params, parts.val_data).loss,
        "test": {**measured, **caption_pictures(parts.module, params, held_out, settings).scores},
        "projector_sha256": params_sha256(load_projector(folder.projector)),
    }
    folder.write_json(folder.path / "evaluation.json", result)
    return result
