"""Every method by name, from a config to a summary: on the demo, and on real pairs where they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import small

from fedcmp.aggregation.presets import PRESETS
from fedcmp.config import load_config
from fedcmp.runs.train import train

QUIET = ["evaluation.captions=0", "evaluation.examples=0", "evaluation.questions=0"]
DOMAIN = Path(__file__).parent.parent.parent / "configs" / "scenarios" / "domain.yaml"


def run(name: str, folder: Path, path: Path | None = None, *words: str) -> dict:
    words = (*small.SMALL, *QUIET, *words, f"aggregator={name}", f"run.dir={folder / 'run'}")
    summary = train(load_config(path, words))
    assert (summary["method"], summary["exit"], summary["rounds"]) == (name, "finished", 2)
    return summary["val/loss"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_on_the_demo(name: str, tmp_path: Path) -> None:
    losses = run(name, tmp_path)
    assert losses["end"] != losses["start"]
    assert 0 < losses["end"] < 100


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_on_real_pairs(name: str, tmp_path: Path, shared: Path) -> None:
    weights = shared / "weights"
    few = [f"data.max_{split}_per_domain={most}" for split, most in (("train", 16), ("val", 2), ("test", 2))]
    few += [
        f"data.root={shared / 'pairs'}",
        "data.domains=[doodles,satellite,shapes,waste]",
        "federation.local_steps=1",
    ]
    few += [f"model.tower={weights / 'mobilenet_v1_0.5_160'}", f"model.llm={weights / 'caption_lm'}"]
    losses = run(name, tmp_path, DOMAIN, *few)
    assert losses["end"] < losses["start"] + 0.5
