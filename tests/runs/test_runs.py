"""Whole runs on a few scenes: the run folder, the baselines, and bad input before any model is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import small
import torch
from PIL import Image

import fedcmp.runs.parts
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.wrappers import Normalised
from fedcmp.cli import main
from fedcmp.config import Config, load_config
from fedcmp.errors import ConfigError, DataError, RunFolderError
from fedcmp.federation.checkpoint import load_projector, params_sha256, save_projector
from fedcmp.models.backbones import DEMO
from fedcmp.models.projector import init_params
from fedcmp.report.summary import compare_runs, describe
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.data import read_data
from fedcmp.runs.finished import evaluate_run
from fedcmp.runs.method import build_method
from fedcmp.runs.parts import Kept
from fedcmp.runs.train import train
from fedcmp.seeding import torch_rng

FILES = {"config.yaml", "split.json", "metrics.jsonl", "summary.json", "projector.safetensors", "checkpoints"}
SHOWN = {".lock", "captions.png", "captions.jsonl", "pictures", "figures", "test_losses.json"}
TEST = {
    *("loss", "domains", "worst_domain", "loss_shuffled", "image_use", "image_use_se", "ignores_pictures"),
    *("token_accuracy", "token_accuracy_domains", "cider", "probe"),
}
BRIEF = ("evaluation.test=false", "federation.rounds=1", "data.scenes_per_camera=4")


def settings(folder: Path | None, *more: str) -> Config:
    return load_config(None, [*small.SMALL, *([f"run.dir={folder}"] if folder else []), *more])


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_run_folder_is_as_promised(tiny_run: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == FILES | SHOWN
    summary, split = summary_of(tiny_run), json.loads((tiny_run / "split.json").read_text())
    assert (summary["name"], summary["method"], summary["exit"]) == (tiny_run.name, "fedcmp", "finished")
    assert summary["samples_seen"] == 64
    assert summary["val/loss"]["best"] <= summary["val/loss"]["start"]
    test = summary["test"]
    assert set(test) == TEST | {"digits_named", "digits_by_chance"}
    assert test["image_use"] == pytest.approx(test["loss_shuffled"] - test["loss"])
    assert test["loss"] != pytest.approx(summary["val/loss"]["end"], abs=1e-6), "other samples"
    assert summary["projector_sha256"] == params_sha256(load_projector(tiny_run / "projector.safetensors"))
    assert summary["seconds"]["total"] >= summary["seconds"]["train"]
    assert [len(ids) for ids in split["clients"].values()] == split["sizes"] == [8] * 8
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert lines[-1]["val/loss"] == pytest.approx(summary["val/loss"]["end"])


def test_captioned_pictures_are_listed_and_the_first_ones_kept(tiny_run: Path) -> None:
    lines = [json.loads(line) for line in (tiny_run / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["domain"] for line in lines}) == len(lines) == 4, "one domain after the other"
    kept = [line["picture"] for line in lines]
    assert kept[2:] == [None, None]
    assert {f"pictures/{path.name}" for path in (tiny_run / "pictures").iterdir()} == set(kept[:2])
    data = read_data(load_config(tiny_run / "config.yaml"))
    samples = {sample.id: sample for sample in data.test}
    for line in lines:
        sample = samples[line["id"]]
        assert line["reference"] == sample.caption
        if line["picture"]:
            assert Image.open(tiny_run / line["picture"]).tobytes() == data.source.image(sample).tobytes()


def test_the_saved_config_repeats_the_run_bit_by_bit(tiny_run: Path, tmp_path: Path) -> None:
    again = train(load_config(tiny_run / "config.yaml", [f"run.dir={tmp_path / 'again'}"]))
    assert again["projector_sha256"] == summary_of(tiny_run)["projector_sha256"]


def test_evaluate_finds_what_the_run_found_and_takes_another_projector(tiny_run: Path, tmp_path, capsys) -> None:
    summary, config = summary_of(tiny_run), load_config(tiny_run / "config.yaml")
    result = evaluate_run(tiny_run)
    assert result["val/loss"] == pytest.approx(summary["val/loss"]["end"], rel=1e-5)
    assert result["test"] == summary["test"]
    other = tmp_path / "other.safetensors"
    start = init_params(96, 96, config.model.projector, torch_rng(config.run.seed, "projector"))
    save_projector(other, start)
    assert main(["evaluate", str(tiny_run), f"model.projector.init={other}"]) == 0
    assert str(other) in capsys.readouterr().out
    result = json.loads((tiny_run / "evaluation.json").read_text())
    assert result["projector"] == str(other)
    assert result["projector_sha256"] == params_sha256(start) != summary["projector_sha256"]
    assert result["val/loss"] == pytest.approx(summary["val/loss"]["start"], rel=1e-5)
    (tiny_run / "evaluation.json").unlink()
    with pytest.raises(RunFolderError, match=r"config\.yaml"):
        evaluate_run(tmp_path)


def test_centralized_sees_the_same_samples(tmp_path: Path) -> None:
    config = settings(tmp_path / "c", "centralized.batch_sizes=[4,8]", "centralized.lrs=[1e-3,1e-2]")
    summary = train_centralized(config, tune=True)
    assert (summary["samples_seen"], len(summary["tuning"])) == (64, 4)
    best = min(summary["tuning"], key=lambda cell: cell["val/loss"])
    assert summary["chosen"] == {"batch_size": best["batch_size"], "lr": best["lr"]}
    assert summary["val/loss"]["end"] == pytest.approx(best["val/loss"], rel=1e-5)
    saved = list((tmp_path / "c" / "checkpoints").glob("*.ckpt"))
    assert len(saved) == 4
    assert all(key.startswith("projector.") for key in torch.load(saved[0], weights_only=True)["state_dict"])


def test_local_trains_each_client_alone(tmp_path: Path) -> None:
    summary = train_local(settings(tmp_path / "l"))
    clients, test = summary["clients"], summary["test"]
    assert set(clients) == {str(client) for client in range(8)}
    assert all(one["domains"] == [one["name"]] for one in clients.values())
    assert summary["val/loss"]["end"] == pytest.approx(sum(one["all"] for one in clients.values()) / 8)
    assert summary["seconds"]["train"] > 0
    hashes = {params_sha256(load_projector(path)) for path in (tmp_path / "l" / "clients").rglob("*.safetensors")}
    assert len(hashes) == 8
    assert set(test) == TEST
    assert test["cider"] is None, "no captions of eight projectors"
    assert test["worst_domain"]["loss"] == max(test["domains"].values())
    own, whole = (sum(one["test"][kind] for one in clients.values()) / 8 for kind in ("own", "all"))
    assert own < whole == pytest.approx(test["loss"]), "a client is tested on its own domains, too"


@pytest.mark.parametrize("kind", [train, train_centralized, train_local])
def test_the_test_samples_can_wait(tmp_path: Path, kind) -> None:
    summary = kind(settings(tmp_path / "r", *BRIEF))
    assert summary["test"] is None
    assert summary["val/loss"]["end"] > 0
    assert not {"captions.png", "captions.jsonl", "pictures"} & {path.name for path in (tmp_path / "r").iterdir()}
    total, *parts = map(float, re.findall(r"\d+\.\d", re.search(r"seconds .*", describe(summary, "r"))[0]))
    assert sum(parts) == pytest.approx(total, abs=0.05 * (len(parts) + 1)), "rounded, they add up"
    assert "fedcmp" in compare_runs([{**summary, "name": "fedcmp"}])
    if kind is train:
        assert evaluate_run(tmp_path / "r")["test"]["loss"] > 0


def test_a_second_run_in_the_same_process_loads_and_computes_nothing(tiny_run: Path, tmp_path, monkeypatch) -> None:
    names = ("load_samples", "load_tower", "load_llm", "see")
    watched = {name: Mock(wraps=getattr(fedcmp.runs.parts, name)) for name in names}
    for name, one in watched.items():
        monkeypatch.setattr(fedcmp.runs.parts, name, one)

    def called() -> dict[str, int]:
        counts = {name: one.call_count for name, one in watched.items() if one.call_count}
        for one in watched.values():
            one.reset_mock()
        return counts

    keep, models = Kept(), {"load_llm": 1, "load_tower": 1, "see": 3}
    hashes = [train(settings(tmp_path / "1"), keep=keep)["projector_sha256"]]
    assert called() == {**models, "load_samples": 1}
    hashes.append(train(settings(tmp_path / "2"), keep=keep)["projector_sha256"])
    assert called() == {}
    assert hashes == [summary_of(tiny_run)["projector_sha256"]] * 2
    train_local(settings(tmp_path / "3", *BRIEF), keep=keep)
    assert called() == {"load_samples": 1, "see": 1}, "fewer training pictures, the same validation pictures"
    other = train(settings(tmp_path / "4", "run.seed=1"), keep=keep)
    assert called() == {"load_samples": 1, "see": 3}, "the scenes of another seed have the same ids and are others"
    assert other["test"] == train(settings(tmp_path / "5", "run.seed=1"))["test"]
    assert called() == models, "nothing is kept unasked"
    train_centralized(settings(tmp_path / "6", "run.seed=1", "model.keep_cls=true"), keep=keep)
    assert called() == models, "another tower"


def test_runs_without_a_name_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [train(settings(None, *BRIEF))["folder"] for _ in range(2)]
    assert folders == ["runs/run-fedcmp-1", "runs/run-fedcmp-2"]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_tower", "load_llm"):
        monkeypatch.setattr(fedcmp.runs.parts, name, None)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(("error", "key", "words"), [
    (DataError, r"federation\.batch_size", ["federation.batch_size=16"]),
    (ConfigError, r"model\.tower.*/no/tower", ["model.tower=/no/tower"]),
    (ConfigError, r"model\.llm", ["model.llm=./nowhere"]),
    (ConfigError, r"model\.projector\.init", ["model.projector.init=none.safetensors"]),
    (ConfigError, r"data\.domains", ["data.domains=[plane]"]),
    (ConfigError, r"model\.tower.*width 50", ["model.projector.init=WIDE", "model.projector.kind=linear"]),
    (ConfigError, r"model\.projector\.kind", ["model.projector.init=WIDE"]),
    (ConfigError, r"aggregator\.name=krum", ["aggregator=krum", "federation.clients_per_round=3"]),
    (ConfigError, r"federation\.min_clients=9", ["federation.min_clients=9"]),
])  # fmt: skip
def test_bad_input_ends_before_a_model_is_loaded(tmp_path: Path, error: type, key: str, words: list[str]) -> None:
    wide = tmp_path / "wide.safetensors"
    save_projector(wide, {"linear.weight": torch.zeros(96, 50), "linear.bias": torch.zeros(96)})
    with pytest.raises(error, match=key):
        train(settings(tmp_path / "new", *(word.replace("WIDE", str(wide)) for word in words)))
    assert not (tmp_path / "new").exists(), "a failed start leaves no folder behind"


@pytest.mark.usefixtures("no_models")
def test_no_place_for_the_run(tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / "file", tiny_run):
        with pytest.raises(RunFolderError, match=folder.name):
            train(settings(folder))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    with pytest.raises(RunFolderError, match="1 MiB"):
        train(settings(tmp_path / "run"))


def test_a_failure_in_mid_run_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunFolderError, match=r"round-0001\.pt.*No space left"):
        train(settings(tmp_path / "run", *BRIEF, "attack.kind=sign", "attack.share=0.25"))
    summary = summary_of(tmp_path / "run")
    assert summary["exit"] == "failed"
    assert len(summary["byzantine"]) == 2, "who attacked is known"
    assert "No space left" in summary["error"]


def test_corrupted_captions_are_trained_on_and_nothing_else_is_touched() -> None:
    words = ["data.scenes_per_camera=8", "federation.batch_size=4", "federation.rounds=1", "partition.clients=4"]
    template = ["partition.scenario=domain+quality", "partition.quality.kind=template"]
    clean, hurt = read_data(load_config(None, words)), read_data(load_config(None, [*words, *template]))
    corrupted = {position for client in hurt.split.corrupted for position in client}
    assert len(corrupted) == 32
    for position, (before, after) in enumerate(zip(clean.train, hurt.train, strict=True)):
        assert (after.caption == "a picture") == (position in corrupted)
        assert (after.caption == before.caption) == (position not in corrupted)
    assert (hurt.val, hurt.test) == (clean.val, clean.test)
    assert (hurt.split.clients, hurt.plan) == (clean.split.clients, clean.plan)


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.7), ("adamw", 0.0)])
def test_fednova_knows_the_momentum_of_the_clients(optimizer: str, momentum: float) -> None:
    words = ["aggregator=fednova", f"optimizer.name={optimizer}", "optimizer.momentum=0.7"]
    config = load_config(None, [*words, *BRIEF[1:], "federation.batch_size=2"])
    assert build_method(config, read_data(config).plan).aggregator.fuse == Normalised(Mean(), momentum)


@pytest.mark.slow
def test_the_demo_learns_to_read_pictures(tmp_path: Path) -> None:
    few = ["data.scenes_per_camera=512", "data.val_scenes_per_camera=16", "data.test_scenes_per_camera=16"]
    run = ["evaluation.captions=64", "federation.rounds=8", "wandb.mode=disabled", f"run.dir={tmp_path / 'run'}"]
    summary = train(load_config(None, [*few, *run]))
    assert summary["val/loss"]["end"] < 0.5 * summary["val/loss"]["start"]
    assert summary["test"]["image_use"] > 0.3
    assert summary["test"]["digits_named"] > 3 * summary["test"]["digits_by_chance"]
    assert sum(path.stat().st_size for path in DEMO.rglob("*.safetensors")) < 3_000_000
