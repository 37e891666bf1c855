"""Every method by name, from a config to a summary: on the demo, and on real pairs where they are there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import small

from fedcmp.aggregation.presets import PRESETS
from fedcmp.config import load_config
from fedcmp.runs.train import train

QUIET = ["evaluation.captions=0", "evaluation.examples=0", "evaluation.questions=0"]
DOMAIN = Path(__file__).parent.parent.parent / "configs" / "scenarios" / "domain.yaml"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_on_the_demo(name: str, tmp_path: Path) -> None:
    summary = train(load_config(None, [*small.SMALL, *QUIET, f"aggregator={name}", f"run.dir={tmp_path / 'run'}"]))
    assert (summary["method"], summary["exit"], summary["rounds"]) == (name, "finished", 2)
    assert math.isfinite(summary["val/loss"]["end"])
    assert summary["val/loss"]["end"] != summary["val/loss"]["start"]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_on_real_pairs(name: str, tmp_path: Path, shared: Path, features: Path) -> None:
    few = [
        f"data.root={shared / 'pairs'}",
        f"model.tower={shared / 'weights' / 'mobilenet_v1_0.5_160'}",
        f"model.llm={shared / 'weights' / 'caption_lm'}",
        f"data.cache_dir={features}",
        "data.domains=[doodles,satellite,shapes,waste]",
        "data.max_train_per_domain=16",
        "data.max_val_per_domain=2",
        "data.max_test_per_domain=2",
        "federation.local_steps=1",
    ]
    config = load_config(DOMAIN, [*small.SMALL, *QUIET, *few, f"aggregator={name}", f"run.dir={tmp_path / 'run'}"])
    summary = train(config)
    assert (summary["method"], summary["exit"]) == (name, "finished")
    assert summary["val/loss"]["end"] < summary["val/loss"]["start"] + 0.5
