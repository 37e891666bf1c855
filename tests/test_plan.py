"""`fedcmp plan` against the run that it foretells."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import small as small_run
import torch

import fedcmp.runs.parts
from fedcmp.cli import main
from fedcmp.config import Config, load_config
from fedcmp.federation.checkpoint import save_projector
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.report.plan import describe_plan
from fedcmp.runs.plan import plan
from fedcmp.runs.train import train
from fedcmp.tracking.progress import Progress

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
SMALL = [*small_run.SMALL, "data.scenes_per_camera=10", "federation.rounds=3", "federation.batch_size=2"]
SMALL += ["evaluation.captions=0", "run.device=cpu"]


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
    for number, client in enumerate(found.clients):
        done = {what: sum(one.get(f"client/{number}/{what}", 0) for one in records) for what in ("samples", "steps")}
        assert done == {"samples": client.samples, "steps": client.steps}
    assert records[-1]["samples_seen"] == found.num_samples


def test_the_page_has_ranks_clients_and_bytes_and_loads_nothing(capsys, monkeypatch) -> None:
    for name in ("load_tower", "load_llm"):
        monkeypatch.setattr(fedcmp.runs.parts, name, None)
    assert main(["plan", *SMALL, "--ranks", "4", "launch.group_size=2"]) == 0
    page = capsys.readouterr().out.splitlines()
    facts = {"0 (server) cpu 0 0 1 | 4 5", "rounds 3", "client 7 (tilted) 10 10 5 3"}
    assert facts <= {" ".join(line.split()) for line in page}
    assert max(map(len, page)) <= 120
    forty = describe_plan(plan(small("partition.scenario=iid", "partition.clients=40", "federation.rounds=1")))
    assert "samples held" not in forty
    assert "of 40" in forty


def test_every_demo_config_leaves_each_client_a_few_batches() -> None:
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = load_config(path, ["run.device=cpu"])
        found = plan(config).forecast
        assert min(client.held for client in found.clients) >= 4 * config.federation.batch_size, path
        assert min(client.steps for client in found.clients if client.rounds) >= 2, path
        assert found.share_used > 0.8, path


def test_the_rest_is_planned_where_a_model_is_unknown(tmp_path: Path) -> None:
    page = plan(small("model.llm=nobody/no-such-llm"))
    assert "bytes: unknown" in describe_plan(page)
    assert page.memory == ()
    assert page.features is not None
    params = init_params(96, 96, ProjectorConfig(hidden=7), torch.Generator().manual_seed(0))
    save_projector(tmp_path / "p.safetensors", params)
    words = [f"model.projector.init={tmp_path / 'p.safetensors'}", "aggregator=fedavg"]
    size = sum(value.numel() for value in params.values())
    for tower in ("demo", "nobody/no-such-tower"):
        found = plan(small(*words, f"model.tower={tower}"))
        assert found.forecast.rounds[0].most["bytes/down"] == 8 * 4 * size


def test_devices_and_idle_ranks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "4 of 8 groups" in describe_plan(plan(small(), 8))
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


def test_memory_of_features_and_of_a_shared_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = plan(small("launch.group_size=2"), 2)
    assert alone.features == 2 * (80 + 16 + 16) * 16 * 96
    shared = plan(small("launch.group_size=2", "launch.shard_llm=true", "aggregator.fuse.explore=1"), 2)
    whole, part = (next(part.server for part in one.memory if part.what == "language model") for one in (alone, shared))
    assert 0.5 * whole < part < 0.7 * whole
    room = alone.features * 3 // 2
    monkeypatch.setattr(os, "sysconf", lambda name: room if name == "SC_PHYS_PAGES" else 1)
    assert plan(small()).notes == ()
    assert "344.1 kB of main memory on each of 2 ranks" in plan(small(), 2).notes[0]


def test_ranks_share_the_operations() -> None:
    alone, shared = plan(small()).effort, plan(small("launch.group_size=2"), 4).effort
    assert (alone.rows, shared.rows) == (80, 20)
    assert alone.rank == alone.run == shared.run == pytest.approx(4 * shared.rank)
    assert alone.activations == 2 * shared.activations, "two rows of one step, one on each rank of a group"
    assert alone.seconds == {}
    twice = ["federation.passes=2", "model.llm_dtype=bfloat16"]
    kept, streamed = plan(small(*twice)), plan(small(*twice, "data.stream=true"))
    assert streamed.effort.run > kept.effort.run > 1.8 * alone.run, "the tower sees each picture once, or each time"
    assert "at 40% of the bfloat16 peak" in describe_plan(streamed)
    checkpointed = plan(small("model.activation_checkpointing=true")).effort
    assert alone.rank < checkpointed.rank < 1.5 * alone.rank
    assert checkpointed.activations < 0.8 * alone.activations


def test_what_a_run_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["aggregator=krum", "federation.dropout=0.8", "federation.local_steps=1"]
    for words, key in (
        (["--ranks", "0"], "--ranks"),
        (["--ranks", "3", "launch.group_size=2"], "launch.group_size=2"),
        (["federation.rounds=99"], "federation.rounds=5"),
        (["aggregator=krum", "federation.clients_per_round=2"], "at least 5 clients"),
        (["model.tower=./nowhere"], "model.tower"),
        (few, "federation.dropout"),
    ):
        assert main(["plan", *SMALL, *words]) == 2
        assert key in capsys.readouterr().err
    for words, dropping in (([*few, "federation.min_clients=5"], True), ([], False)):
        assert ("clients that drop out" in describe_plan(plan(small(*words)))) == dropping
