"""The round loop on a tiny federation: records, checkpoints, a poisoned client, and resuming."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import pytest
import torch
from full_disk import room
from tiny_federation import PARAMS, Memory, begin, federation, fetch, finish, flat, poisoned, stop_and_resume

from fedcmp.errors import AggregationError, CheckpointError, RunFolderError
from fedcmp.evaluation.losses import EvalData, Evaluation, evaluate
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
from fedcmp.module import ProjectorAlignment


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


@pytest.mark.parametrize("method", ["fedavgm", "fedyogi"])
def test_resuming_gives_the_same_bits(llm: LanguageModel, tmp_path: Path, method: str) -> None:
    whole = federation(llm, method, {"keep_local_state": True})
    assert params_sha256(stop_and_resume(whole, tmp_path).params) == params_sha256(finish(whole).params)


def test_resuming_scaffold_with_half_of_the_clients_gives_the_same_bits(llm: LanguageModel, tmp_path: Path) -> None:
    clients = [tuple(range(8 * client, 8 * client + 8)) for client in range(4)]
    config = FederationConfig(rounds=4, batch_size=2, slots=2, clients_per_round=2, local_steps=2)
    whole = federation(llm, "scaffold", config=config, plan=plan_run(clients, config, seed=0))
    assert len({task.client_id for one in whole.plan.rounds[:2] for task in one.tasks}) > 2, "states of several rounds"
    expected, resumed = finish(whole), stop_and_resume(whole, tmp_path)
    assert params_sha256(resumed.params) == params_sha256(expected.params)
    assert flat([resumed.aggregator, resumed.local]) == flat([expected.aggregator, expected.local])
    assert expected.local.keys() == {0, 1, 2, 3}
    for name, value in expected.aggregator["local"]["control"].items():  # c stays the mean of all c_k, round for round
        mean = sum(kept["step"]["control"][name] for kept in expected.local.values()) / 4
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["scaffold", "fedcm", "fednova", "fedprox", "fedcmp"])
def test_a_rejected_client_leaves_no_trace_in_any_state(llm: LanguageModel, method: str) -> None:
    settings = {"keep_local_state": True}
    whole = federation(llm, method, settings)
    sound, _ = run_round(whole, begin(whole), whole.plan.rounds[0])
    before = flat(sound.local[0]), flat(sound.local[1])
    state, record = run_round(federation(llm, method, settings, poisoned), sound, whole.plan.rounds[1])
    assert record["client/1/accepted"] is False
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


@pytest.mark.parametrize(("method", "factor"), [("fedavg", 1), ("scaffold", 2)])
def test_bytes_count_what_the_local_step_sends(llm: LanguageModel, method: str, factor: int) -> None:
    size, whole = sum(value.numel() * 4 for value in PARAMS.values()), federation(llm, method)
    _, record = run_round(whole, begin(whole), whole.plan.rounds[0])
    for way in ("up", "down"):
        assert 0 <= record[f"bytes/{way}"] / 3 - factor * size < 64, "beside them go some numbers at most"
    assert record["bytes/diagnostics"] == 3 * size, "pairwise cosines cost each client its delta once more"


def test_a_poisoned_client_is_named_and_left_out(llm: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    whole = federation(llm, fetch=poisoned)
    with caplog.at_level(logging.WARNING):
        state = finish(whole)
    assert all(value.isfinite().all() for value in state.params.values())
    assert "round 1: client 1 was left out" in caplog.text
    assert [whole.tracker.records[1][f"client/1/{key}"] for key in ("accepted", "weight")] == [False, 0.0]
    with pytest.raises(AggregationError, match=r"only 2 of 3 .*client 1"):
        finish(federation(llm, settings={"min_clients": 3}, fetch=poisoned))


def test_evaluation_by_hand_and_with_other_pictures(llm: LanguageModel) -> None:
    module, data = ProjectorAlignment(None, llm, PARAMS), EvalData(fetch, ("a", "b", "a", "b", "a"), batch_size=2)
    scores = evaluate(module, PARAMS, data)
    with torch.inference_mode():
        losses = [float(module.nll(fetch([p]), PARAMS)[0]) / 5 for p in range(5)]
    assert scores.by_domain["a"] == pytest.approx(sum(losses[0::2]) / 3, rel=1e-5)
    assert scores.loss == pytest.approx((scores.by_domain["a"] + scores.by_domain["b"]) / 2)
    assert Evaluation.from_record(scores.scalars()) == scores._replace(accuracy_by_domain=None)


def test_corrupted_and_missing_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    for name in ("round-0001.pt", "bad.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    path = save_checkpoint(tmp_path, FederationState(PARAMS, {}, rounds_done=7))
    whole = path.read_bytes()
    turned = [bytearray(whole) for _ in range(30)]
    for number, one in enumerate(turned):  # wherever a bit turns
        one[number * len(whole) // 30] ^= 1
    for content in (*turned, b"", whole[:100], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert load_checkpoint(path).rounds_done == 7
    other = path.rename(path.with_name(path.name.replace("0007", "0008")))
    with pytest.raises(CheckpointError, match=other.name):
        load_checkpoint(other)
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        load_projector(tmp_path / "none.safetensors")


def test_old_checkpoints_are_found_by_number(tmp_path: Path) -> None:
    def save(number: int, samples: int = 0) -> Path:
        path = save_checkpoint(tmp_path, FederationState(PARAMS, {}, rounds_done=number, samples_seen=samples))
        prune_checkpoints(path, keep=2)
        return path

    for number in (9998, 9999, 10000):
        save(number)
    assert [round_of(path) for path in list_checkpoints(tmp_path)] == [9999, 10000]
    again = save(10000, samples=3)
    assert [one.name for one in tmp_path.glob("round-10000-*")] == [again.name], "one of each round"
    back = save(5)
    assert list_checkpoints(tmp_path) == [back], "a run that went back to round 4 has left the later ones"


def test_a_checkpoint_goes_when_the_next_round_is_recorded_and_not_before(llm: LanguageModel, tmp_path: Path) -> None:
    found: list[list[int]] = []

    class Looking(Memory):
        def log(self, record) -> None:
            super().log(record)
            found.append([round_of(path) for path in list_checkpoints(tmp_path)])

    last = finish(federation(llm, settings={"keep_checkpoints": 1}, checkpoints=tmp_path, tracker=Looking()))
    assert found == [[], [1], *([number, number + 1] for number in range(1, last.rounds_done))]
    assert [round_of(path) for path in list_checkpoints(tmp_path)] == [last.rounds_done]


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


def test_the_projector_file_has_its_names_and_bits(tmp_path: Path) -> None:
    save_projector(tmp_path / "p.safetensors", PARAMS)
    loaded = load_projector(tmp_path / "p.safetensors")
    assert sorted(loaded) == ["linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight"]
    assert params_sha256(loaded) == params_sha256(PARAMS)
    assert params_sha256(dict(reversed(loaded.items()))) == params_sha256(PARAMS) != params_sha256({})
