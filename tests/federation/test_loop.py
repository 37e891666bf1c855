"""The round loop on a tiny federation: records, checkpoints, a poisoned client, and resuming."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import pytest
import torch
from full_disk import room
from tiny_federation import PARAMS, Memory, begin, federation, finish, flat, poisoned, stop_and_resume

from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.federation import groups
from fedcmp.federation.checkpoint import (
    FederationState,
    list_checkpoints,
    load_checkpoint,
    load_projector,
    params_sha256,
    prune_checkpoints,
    round_of,
    save_checkpoint,
    save_projector,
)
from fedcmp.federation.loop import run_round
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel


def test_one_record_a_round_with_its_keys(llm: LanguageModel, tmp_path: Path) -> None:
    whole = federation(llm, checkpoints=tmp_path)
    state = finish(whole)
    records = whole.tracker.records
    assert [(record["round"], record["samples_seen"]) for record in records] == [(0, 0), (1, 12), (2, 22), (3, 32)]
    assert state.samples_seen == 32
    keys = {"lr", "train/loss", "val/loss", "val/loss/a", "val/loss/b", "val/worst_domain", "bytes/up", "bytes/down"}
    keys |= {f"client/{k}/{what}" for k in range(3) for what in ("loss", "samples", "steps", "weight", "accepted")}
    keys |= {f"seconds/{phase}" for phase in ("train", "aggregate", "evaluate", "save")}
    keys |= {"aggregator/delta_norm", "aggregator/step_norm", "aggregator/energy_kept"}
    assert keys <= set(records[1])
    weights, losses = ([records[1][f"client/{k}/{key}"] for k in range(3)] for key in ("weight", "loss"))
    assert sum(weights) == pytest.approx(1.0)
    assert records[1]["train/loss"] == pytest.approx(sum(p * x for p, x in zip(weights, losses, strict=True)))
    assert records[1]["val/loss"] == pytest.approx((records[1]["val/loss/a"] + records[1]["val/loss/b"]) / 2)
    assert [path.name[:11] for path in sorted(tmp_path.iterdir())] == ["round-0002-", "round-0003-"]


def test_one_schedule_spans_the_run(llm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, whole = [], groups.train_wave

    def noting(module, fetch, wave, common, *rest):
        spans.append((common.progress(0.0), common.progress(1.0)))
        return whole(module, fetch, wave, common, *rest)

    monkeypatch.setattr(groups, "train_wave", noting)
    finish(federation(llm, "fedavg", {"slots": 3}))
    assert spans == [(0.0, 12 / 32), (12 / 32, 22 / 32), (22 / 32, 1.0)]


def test_resuming_scaffold_with_half_of_the_clients_gives_the_same_bits(llm: LanguageModel, tmp_path: Path) -> None:
    clients = [tuple(range(8 * client, 8 * client + 8)) for client in range(4)]
    config = FederationConfig(rounds=4, batch_size=2, slots=2, clients_per_round=2, local_steps=2)
    whole = federation(llm, "scaffold", config=config, plan=plan_run(clients, config, seed=0))
    assert len({task.client_id for one in whole.plan.rounds[:2] for task in one.tasks}) > 2, "states of several rounds"
    expected, resumed = finish(whole), stop_and_resume(whole, tmp_path)
    assert flat([resumed.params, resumed.aggregator, resumed.local]) == flat(
        [expected.params, expected.aggregator, expected.local]
    )
    assert expected.local.keys() == {0, 1, 2, 3}
    for name, value in expected.aggregator["local"]["control"].items():  # c stays the mean of all c_k, round for round
        mean = sum(kept["step"]["control"][name] for kept in expected.local.values()) / 4
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["scaffold", "fedcm", "fednova", "fedprox", "fedcmp"])
def test_a_rejected_client_leaves_no_trace_in_any_state(
    llm: LanguageModel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"keep_local_state": True}
    whole = federation(llm, method, settings)
    sound, first = run_round(whole, begin(whole), whole.plan.rounds[0])
    if method in ("fedprox", "scaffold"):
        size = sum(value.numel() * 4 for value in PARAMS.values())
        for way in ("up", "down"):
            beside = first[f"bytes/{way}"] / 3 - (1 + (method == "scaffold")) * size
            assert 0 <= beside < 64, "beside what the local step sends go some numbers at most"
        assert first["bytes/diagnostics"] == 3 * size, "pairwise cosines cost each client its delta once more"
    before = flat(sound.local[0]), flat(sound.local[1])
    with caplog.at_level(logging.WARNING):
        state, record = run_round(federation(llm, method, settings, poisoned), sound, whole.plan.rounds[1])
    assert "round 2: client 1 was left out" in caplog.text
    assert (record["client/1/accepted"], record["client/1/weight"]) == (False, 0.0)
    assert (flat(sound.local[0]), flat(state.local[1])) == before
    assert flat(state.local[0]) != before[0]
    assert all(math.isfinite(number) for number in flat([state.params, state.aggregator, state.local]))


@pytest.mark.parametrize("method", ["scaffold", "fedcm"])
def test_what_the_server_keeps_for_the_local_step_reaches_the_clients(llm: LanguageModel, method: str) -> None:
    whole = federation(llm, method)
    state, _ = run_round(whole, begin(whole), whole.plan.rounds[0])
    fresh = dataclasses.replace(state, aggregator={**state.aggregator, "local": whole.aggregator.local.init(PARAMS)})
    one, other = (run_round(whole, begun, whole.plan.rounds[1])[0].params for begun in (state, fresh))
    assert params_sha256(one) != params_sha256(other)


def test_a_checkpoint_goes_when_the_next_round_is_recorded(llm: LanguageModel, tmp_path: Path) -> None:
    found: list[list[int]] = []

    class Looking(Memory):
        def log(self, record) -> None:
            super().log(record)
            found.append([round_of(path) for path in list_checkpoints(tmp_path)])

    last = finish(federation(llm, settings={"keep_checkpoints": 1}, checkpoints=tmp_path, tracker=Looking()))
    assert found == [[], [1], *([number, number + 1] for number in range(1, last.rounds_done))]
    assert [round_of(path) for path in list_checkpoints(tmp_path)] == [last.rounds_done]
    for number, samples, kept in (
        (9998, 0, [9998]), (9999, 0, [9998, 9999]), (10000, 0, [9999, 10000]),
        (10000, 3, [9999, 10000]),  # one of each round
        (5, 0, [5]),  # a run that went back to round 4 has left the later ones
    ):  # fmt: skip
        path = save_checkpoint(tmp_path / "other", FederationState(PARAMS, {}, number, samples))
        prune_checkpoints(path, keep=2)
        assert [round_of(one) for one in list_checkpoints(tmp_path / "other")] == kept
        assert path.exists()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    state = FederationState(PARAMS, {})
    path = save_checkpoint(tmp_path, state)
    before = path.read_bytes()
    for size in (0, len(before) // 2, len(before) - 1):
        with room(size), pytest.raises(RunFolderError, match="round-0000"):
            save_checkpoint(tmp_path, state)
        with room(size // 100), pytest.raises(RunFolderError, match=r"projector\.safetensors"):
            save_projector(tmp_path / "projector.safetensors", PARAMS)
        assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {path.name: before}
    save_projector(tmp_path / "p.safetensors", PARAMS)
    loaded = load_projector(tmp_path / "p.safetensors")
    assert sorted(loaded) == ["linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight"]
    assert params_sha256(dict(reversed(loaded.items()))) == params_sha256(PARAMS) != params_sha256({})
    for load, name in ((load_checkpoint, "round-0001.pt"), (load_projector, "none.safetensors")):
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / name)
