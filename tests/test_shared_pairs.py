"""The main job on real pairs, small: runs where the pairs and weights lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcmp.config import load_config
from fedcmp.data.sources import count_domains, pairs_source
from fedcmp.experiment import train

CONFIG = Path(__file__).parent.parent / "configs" / "scenarios" / "domain.yaml"


@pytest.mark.shared
def test_all_eleven_domains_can_be_read(shared: Path) -> None:
    source = pairs_source(shared / "pairs")
    train_counts = count_domains(source.samples("train"))
    assert len(train_counts) == 11
    assert sum(train_counts.values()) > 25_000
    for sample in source.samples("val")[::211]:
        assert source.image(sample).mode == "RGB"


@pytest.mark.shared
def test_a_small_domain_run_learns(shared: Path, tmp_path: Path) -> None:
    small = [
        f"run.dir={tmp_path / 'run'}",
        f"data.root={shared / 'pairs'}",
        f"model.tower={shared / 'weights' / 'mobilenet_v1_0.5_160'}",
        f"model.llm={shared / 'weights' / 'caption_lm'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.max_train_per_domain=32",
        "data.max_val_per_domain=8",
        "federation.rounds=2",
        "federation.local_steps=2",
        "federation.batch_size=8",
        "evaluation.captions=8",
        "wandb.mode=disabled",
    ]
    summary = train(load_config(CONFIG, small))
    assert summary["val/loss"]["end"] < summary["val/loss"]["start"] - 0.05
    assert len(summary["val/domains"]) == 8
    again = train(load_config(CONFIG, [*small, f"run.dir={tmp_path / 'again'}"]))
    assert again["projector_sha256"] == summary["projector_sha256"], "cached features change nothing"
