"""`fedcmp plan` against the run that it foretells."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import fedcmp.build.kept
from fedcmp.cli import main
from fedcmp.config import Config, load_config
from fedcmp.errors import ConfigError
from fedcmp.experiment import plan, train
from fedcmp.report.formatting import human
from fedcmp.report.plan import describe_plan
from fedcmp.tracking.progress import Progress

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
SMALL = [
    "data.scenes_per_camera=10",
    "data.val_scenes_per_camera=2",
    "data.test_scenes_per_camera=2",
    "federation.rounds=3",
    "federation.batch_size=2",
    "evaluation.captions=0",
    "evaluation.examples=0",
    "wandb.mode=disabled",
    "run.device=cpu",
]


def small(*words: str) -> Config:
    return load_config(None, [*SMALL, *words])


@pytest.mark.parametrize("words", [
    ("aggregator=scaffold", "federation.clients_per_round=3"),
    ("aggregator=fedcmp", "partition.scenario=iid", "partition.clients=3"),
    ("aggregator=fedavg", "partition.scenario=topic+quality+quantity", "partition.quantity.min_samples=6",
     "federation.dropout=0.3", "federation.local_steps=1"),
], ids=str)  # fmt: skip
def test_the_run_does_what_the_plan_says(words: tuple[str, ...], tmp_path: Path) -> None:
    config = small(*words, f"run.dir={tmp_path / 'run'}")
    found = plan(config).forecast
    train(config, progress=Progress(enabled=False))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    assert len(records) == len(found.rounds) == 3
    for one, record in zip(found.rounds, records, strict=True):
        assert record.get("clients_dropped", 0) == one.num_dropped
        assert sum(key.endswith("/accepted") for key in record) == one.num_clients
        for key in ("bytes/up", "bytes/down", "bytes/diagnostics"):
            assert record[key] <= one.most[key]
            assert record[key] == one.most[key] or "aggregator=fedcmp" in words
    for client in found.clients:
        for what, foretold in (("samples", client.samples), ("steps", client.steps)):
            assert sum(record.get(f"client/{client.client}/{what}", 0) for record in records) == foretold
    assert records[-1]["samples_seen"] == found.num_samples


def test_the_page_says_it_all_and_loads_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(fedcmp.build.kept, "load_tower", loaded)
    monkeypatch.setattr(fedcmp.build.kept, "load_llm", loaded)
    assert main(["plan", *SMALL, "--ranks", "4", "launch.group_size=2"]) == 0
    page = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "0 (server) cpu 0 0 1 | 4 5" in lines
    assert "3 cpu 1 the same, its share of rows" in lines
    for fact in (
        "rounds 3",
        "clients in a round 8 of 8",
        "waves in a round 4",
        "samples in all 80; 100.0% of the training samples are used",
        "samples of a client 10 / 10 / 10 (min / median / max)",
        "clients record evidence, halfway",
        "clients needed 1 or more in every round",
        "client 7 (tilted) 10 10 5 3",
        "up, diagnostics 595,968 1.8 MB",
    ):
        assert fact in lines
    assert max(map(len, page.splitlines())) <= 120


def test_drop_outs_are_told() -> None:
    page = describe_plan(plan(small("federation.dropout=0.5", "federation.local_steps=1")))
    assert "clients that drop out" in page
    assert "clients that drop out" not in describe_plan(plan(small()))
    few = ("aggregator=krum", "federation.dropout=0.8", "federation.local_steps=1")
    with pytest.raises(ConfigError, match=r"federation\.min_clients=5 keeps enough of those that drop out"):
        plan(small(*few))
    assert "clients that drop out" in describe_plan(plan(small(*few, "federation.min_clients=5")))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_demo_config_can_be_planned(path: Path) -> None:
    """Each client has a few batches, whatever its scenario leaves it."""
    found = plan(load_config(path, ["run.device=cpu"])).forecast
    assert min(client.held for client in found.clients) >= 4 * load_config(path).federation.batch_size
    assert min(client.steps for client in found.clients if client.rounds) >= 2
    assert found.share_used > 0.8


def test_more_clients_than_lines_are_summed_up() -> None:
    page = describe_plan(plan(small("partition.scenario=iid", "partition.clients=40", "federation.rounds=1")))
    assert "samples held" not in page
    assert "of 40" in page


def test_what_is_unknown_is_said_and_the_rest_told() -> None:
    page = plan(small("model.llm=nobody/no-such-llm"))
    text = describe_plan(page)
    assert "bytes: unknown" in text
    assert "samples in all" in text
    assert page.memory == ()
    assert page.features is not None


def test_a_projector_to_start_from_gives_the_shapes(tmp_path: Path) -> None:
    from fedcmp.federation.checkpoint import save_projector
    from fedcmp.models.projector import ProjectorConfig, init_params

    params = init_params(96, 96, ProjectorConfig(hidden=7), torch.Generator().manual_seed(0))
    save_projector(tmp_path / "p.safetensors", params)
    words = [f"model.projector.init={tmp_path / 'p.safetensors'}", "aggregator=fedavg"]
    size = sum(value.numel() for value in params.values())
    for tower in ("demo", "nobody/no-such-tower"):
        found = plan(small(*words, f"model.tower={tower}"))
        assert found.forecast.rounds[0].most["bytes/down"] == 8 * 4 * size
    save_projector(tmp_path / "p.safetensors", {"linear.weight": torch.zeros(96, 96), "linear.bias": torch.zeros(96)})
    with pytest.raises(ConfigError, match="needs linear_1"):
        plan(small(*words))


def test_idle_ranks_and_missing_gpus_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "4 of 8 groups have nobody to train" in describe_plan(plan(small(), 8))
    assert plan(small(), 4).notes == ()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    away = plan(small("run.device=cuda"))
    assert away.devices == ("cuda",)
    assert "no CUDA device" in away.notes[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert plan(small("run.device=auto"), 4).devices == ("cuda:0", "cuda:1", "cuda:0", "cuda:1")
    assert "4 ranks need 4 GPUs and this machine has 2" in plan(small("run.device=cuda"), 4).notes[0]
    assert plan(small("run.device=cuda", "launch.share_gpu=true"), 4).notes == ()


def test_features_that_fit_no_memory_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    size = plan(small()).features
    assert size == 2 * (80 + 16 + 16) * 16 * 96
    monkeypatch.setattr(os, "sysconf", lambda name: size * 3 // 2 if name == "SC_PHYS_PAGES" else 1)
    assert plan(small()).notes == ()
    assert "344.1 kB of main memory on each of 2 ranks" in plan(small(), 2).notes[0]


def test_a_shared_language_model_is_smaller_on_each_rank() -> None:
    alone = plan(small("launch.group_size=2"), 2).memory
    shared = plan(small("launch.group_size=2", "launch.shard_llm=true"), 2).memory
    sizes = [next(part.server for part in memory if part.what == "language model") for memory in (alone, shared)]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert 0.5 * sizes[0] < sizes[1] < 0.7 * sizes[0]


def test_what_a_run_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--ranks", "0"], "--ranks must be at least 1, got 0"),
        (["--ranks", "3", "launch.group_size=2"], "launch.group_size=2 does not divide the 3 ranks"),
        (["federation.rounds=99"], "federation.rounds=5"),
        (["aggregator=krum", "federation.clients_per_round=2"], "needs at least 5 clients"),
        (["model.tower=./nowhere"], "model.tower: no folder"),
    ):
        assert main(["plan", *SMALL, *words]) == 2
        assert said in capsys.readouterr().err


def test_sizes_are_readable() -> None:
    assert [human(size) for size in (0, 999, 999_949, 999_950, 84_000_000, 13 * 10**9)] == [
        "0 B", "999 B", "999.9 kB", "1.0 MB", "84.0 MB", "13.0 GB",
    ]  # fmt: skip
