"""The embedded demo learns to read pictures, even from a third of its scenes."""

from __future__ import annotations

from pathlib import Path

from fedcmp.config import load_config
from fedcmp.models.backbones import DEMO
from fedcmp.runs.train import train


def test_the_projector_reads_pictures(tmp_path: Path) -> None:
    few = [
        "data.scenes_per_camera=512",
        "data.val_scenes_per_camera=16",
        "data.test_scenes_per_camera=16",
        "evaluation.captions=64",
        "federation.rounds=8",
    ]
    summary = train(load_config(None, [*few, "wandb.mode=disabled", f"run.dir={tmp_path / 'run'}"]))
    assert summary["val/loss"]["end"] < 0.5 * summary["val/loss"]["start"]
    assert summary["test"]["image_use"] > 0.3
    assert summary["test"]["digits_named"] > 3 * summary["test"]["digits_by_chance"]


def test_the_embedded_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*.safetensors")) < 3_000_000
