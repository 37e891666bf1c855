"""Every method by name, from a config to a summary."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import small

from fedcmp.aggregation.presets import PRESETS
from fedcmp.config import load_config
from fedcmp.runs.train import train

QUIET = ["evaluation.captions=0", "evaluation.examples=0", "evaluation.questions=0"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_on_the_demo(name: str, tmp_path: Path) -> None:
    summary = train(load_config(None, [*small.SMALL, *QUIET, f"aggregator={name}", f"run.dir={tmp_path / 'run'}"]))
    assert (summary["method"], summary["exit"], summary["rounds"]) == (name, "finished", 2)
    assert math.isfinite(summary["val/loss"]["end"])
    assert summary["val/loss"]["end"] != summary["val/loss"]["start"]
