"""What needs a GPU: the same run on CUDA and on the CPU, NCCL and gloo, several clients on one GPU. Skips elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples_of_clients import contributions, random_params

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.config import load_config
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.experiment import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = [
    "data.scenes_per_camera=32",
    "data.val_scenes_per_camera=4",
    "data.test_scenes_per_camera=4",
    "federation.rounds=2",
    "evaluation.captions=4",
    "evaluation.examples=0",
    "wandb.mode=disabled",
]


def small(folder: Path, *overrides: str) -> dict:
    return train(load_config(None, [*SMALL, f"run.dir={folder}", *overrides]))


@pytest.mark.parametrize("slots", [1, 8])
def test_cuda_and_cpu_end_at_nearly_the_same_loss(tmp_path: Path, slots: int) -> None:
    ends = [
        small(tmp_path / device, f"run.device={device}", f"federation.slots={slots}")["val/loss"]["end"]
        for device in ("cuda", "cpu")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_a_bfloat16_llm_on_cuda_learns_as_well(tmp_path: Path) -> None:
    full, half = (small(tmp_path / kind, f"model.llm_dtype={kind}")["val/loss"] for kind in ("float32", "bfloat16"))
    assert half["end"] < half["start"] - 0.2
    assert half["end"] == pytest.approx(full["end"], rel=0.1)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_rule_computes_on_cuda_what_it_computes_on_the_cpu(name: str) -> None:
    rule, params, results = build_aggregator(AggregatorConfig(name)), random_params(1), []
    for device in ("cpu", "cuda"):
        clients = [
            one._replace(
                **{
                    part: {key: value.to(device) for key, value in getattr(one, part).items()}
                    for part in ("delta", "halfway", "evidence", "message")
                }
            )
            for one in contributions(0)
        ]
        there = {key: value.to(device) for key, value in params.items()}
        results.append(rule.aggregate(LocalCohort(clients), there, rule.init(there)).params)
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key].cpu(), value, rtol=1e-4, atol=1e-5)


def test_one_rank_over_nccl_gives_the_bits_of_one_process(tmp_path: Path) -> None:
    alone = small(tmp_path / "alone")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "fedcmp"]
    words = ["train", *SMALL, f"run.dir={tmp_path / 'nccl'}"]
    subprocess.run([*launcher, *words], check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert alone["projector_sha256"] in (tmp_path / "nccl" / "summary.json").read_text()
