"""Evaluation of a finished run's projector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcmp.build import build_parts, check_models, read_data
from fedcmp.config import load_config
from fedcmp.evaluation.captions import caption
from fedcmp.evaluation.losses import evaluate, quality
from fedcmp.experiment.base import spread
from fedcmp.federation.checkpoint import load_projector
from fedcmp.federation.folder import open_run
from fedcmp.federation.state import params_sha256
from fedcmp.tracking.progress import Progress


def evaluate_run(path: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> dict[str, Any]:
    """Evaluates the projector of a run on the test samples of its config; writes evaluation.json."""
    folder = open_run(path)
    config = load_config(folder.config, [*overrides, f"model.projector.init={json.dumps(str(folder.projector))}"])
    check_models(config)
    data = read_data(config)
    parts = build_parts(config, data, progress or Progress(), training=False)
    params = {name: value.to(next(iter(parts.params.values())).device) for name, value in parts.params.items()}
    end = evaluate(parts.module, params, parts.test_data)
    shuffled = evaluate(parts.module, params, parts.test_data, shuffle_pictures=True)
    positions = spread(parts.test_data.domains, config.evaluation.captions)
    texts = caption(parts.module, params, parts.test_data, positions, config.evaluation.max_tokens)
    result = {
        "val/loss": evaluate(parts.module, params, parts.val_data).loss,
        "test": {**quality(end, shuffled), **data.source.score(texts, [data.test[p] for p in positions])},
        "projector_sha256": params_sha256(load_projector(folder.projector)),
    }
    folder.write_json(folder.path / "evaluation.json", result)
    return result
