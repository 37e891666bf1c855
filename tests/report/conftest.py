"""Run folders as real runs leave them, made once; tests that change one work on a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small

from fedcmp.config import load_config
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.train import train

SMALL = [
    *small.SMALL,
    "evaluation.examples=2",
    "centralized.batch_sizes=[4,8]",
    "centralized.lrs=[0.005,0.01]",
]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Federated runs of two methods, a centralized and a local one."""
    root = tmp_path_factory.mktemp("runs")

    def config(name: str, *more: str) -> Any:
        return load_config(None, [*SMALL, f"run.dir={root / name}", *more])

    for method in ("fedcmp", "krum"):
        train(config(method, f"aggregator={method}"))
    train_centralized(config("centralized"), tune=True)
    train_local(config("local"))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run that a test may change; ``summary`` is merged into its summary."""

    def copied(name: str = "fedcmp", summary: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / name
        shutil.copytree(runs[name], folder)
        if summary:
            path = folder / "summary.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **summary}))
        return folder

    return copied


LOSSES = {"fedcmp": 1.0, "fedavg": 1.2, "krum": 1.5, "centralized": 0.8, "local": 1.8}


def line(setting: str, method: str, seed: int, stage: str, lr: float = 0.01, **more: Any) -> dict[str, Any]:
    """A line of runs.jsonl."""
    worse = 0.25 if (setting, method) == ("iid", "fedcmp") else 0.0
    loss = LOSSES[method] + worse + 0.01 * seed + abs(lr - 0.01) * 10
    domains = {"photos": loss - 0.1, "drawings": loss + 0.1}
    cell = {"setting": setting, "method": method, "options": {"optimizer.lr": lr}, "seed": seed, "stage": stage}
    return {
        "cell": cell,
        "status": "finished",
        "error": None,
        "val_loss": loss + 0.02,
        "test": {
            "loss": loss,
            "domains": domains,
            "worst_domain": {"name": "drawings", "loss": loss + 0.1},
            "loss_shuffled": loss + 0.4,
            "image_use": 0.4,
        },
        "samples_seen": 1024,
        "seconds": {"total": 12.0 + seed, "train": 8.0, "aggregate": 0.05},
        "bytes": {"up": 4_000_000, "down": 2_000_000} if method not in ("centralized", "local") else None,
        "folder": f"cells/{setting}-{method}-{seed}-{stage}-{lr:g}",
        "versions": {"fedcmp": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        **more,
    }


def row(setting: str, method: str, rank: float | None, p: float | None, recovered: float) -> dict[str, Any]:
    """A row of table.json."""
    losses = [line(setting, method, seed, "final")["test"]["loss"] for seed in (1, 2)]
    mean = sum(losses) / 2
    return {
        "method": method, "mean": mean, "sd": 0.007, "seeds": losses, "recovered": recovered, "rank": rank, "p": p,
        "p_holm": p, "failed": int(method == "krum" and setting == "iid"), "test": {"image_use": 0.4},
    }  # fmt: skip


@pytest.fixture
def comparison(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Two settings, five methods, two seeds; one cell failed; one cell has the rounds of a real run."""
    folder = tmp_path / "study"
    (folder / "cells").mkdir(parents=True)
    lines = []
    for setting in ("domain", "iid"):
        for method in LOSSES:
            lines += [line(setting, method, 0, "tune", lr) for lr in (0.005, 0.01, 0.02)]
            lines += [line(setting, method, seed, "final") for seed in (1, 2)]
    gone = {"setting": "iid", "method": "krum", "options": {"optimizer.lr": 0.01}, "seed": 1, "stage": "final"}
    (broken,) = (one for one in lines if one["cell"] == gone)
    broken |= {"status": "failed", "error": "DataError: disk gone\nTraceback", "test": None, "seconds": None}
    for method in ("fedcmp", "krum"):
        shutil.copytree(runs[method], folder / line("domain", method, 1, "final")["folder"])
    (folder / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    asked = {
        "name": "study", "command": "fedcmp compare demo.yaml --seeds 2", "file": "demo.yaml", "overrides": [],
        "config": "run:\n  seed: 0\n", "settings": [{"label": name, "config": "x"} for name in ("domain", "iid")],
        "methods": [{"label": one, "preset": one, "overrides": []} for one in ("fedcmp", "fedavg", "krum")],
        "seeds": 2, "budget": 3, "reference": "fedcmp", "bounds": True,
    }  # fmt: skip
    (folder / "compare.json").write_text(json.dumps(asked))
    bounds = [("centralized", None, None, 1.0), ("local", None, None, 0.0)]
    table = {
        "settings": {
            "domain": [
                row("domain", *one)
                for one in (("fedcmp", 1, None, 0.8), ("fedavg", 2, 0.004, 0.6), ("krum", 3, 0.0001, 0.3), *bounds)
            ],
            "iid": [
                row("iid", *one)
                for one in (("fedavg", 1, 0.4, 0.6), ("fedcmp", 2, None, 0.55), ("krum", 3, 0.7, 0.3), *bounds)
            ],
        },
        "overall": [
            {"method": "fedcmp", "mean_rank": 1.5, "wins": None, "ties": None, "losses": None},
            {"method": "fedavg", "mean_rank": 1.5, "wins": 2, "ties": 0, "losses": 2, "p": 0.6, "p_holm": 0.6},
            {"method": "krum", "mean_rank": 3.0, "wins": 0, "ties": 0, "losses": 3, "p": 0.01, "p_holm": 0.02},
        ],
        "reference": "fedcmp",
        "bounds": ["centralized", "local"],
    }
    (folder / "table.json").write_text(json.dumps(table))
    return folder
