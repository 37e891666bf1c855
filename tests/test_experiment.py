"""Whole runs on a few scenes: the run folder to the letter, the baselines, and bad input before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small
import torch
from PIL import Image

import fedcmp.build.kept
import fedcmp.build.parts
from fedcmp.build import Kept
from fedcmp.cli import main
from fedcmp.config import Config, load_config
from fedcmp.data.sources import build_source
from fedcmp.errors import ConfigError, DataError, RunFolderError
from fedcmp.experiment import evaluate_run, train, train_centralized, train_local
from fedcmp.experiment.base import Experiment
from fedcmp.federation.checkpoint import load_projector, params_sha256, save_projector
from fedcmp.federation.folder import RunFolder
from fedcmp.models.projector import init_params
from fedcmp.report.summary import compare_runs, describe
from fedcmp.seeding import torch_rng

SMALL = [*small.SMALL, "evaluation.examples=2", "run.figures=true"]
FILES = {
    ".lock",
    "config.yaml",
    "split.json",
    "metrics.jsonl",
    "summary.json",
    "projector.safetensors",
    "captions.png",
    "captions.jsonl",
    "pictures",
    "figures",
    "checkpoints",
}
TEST = {
    "loss",
    "domains",
    "worst_domain",
    "loss_shuffled",
    "image_use",
    "image_use_se",
    "ignores_pictures",
    "token_accuracy",
    "token_accuracy_domains",
    "cider",
    "probe",
    "digits_named",
    "digits_by_chance",
}
SUMMARY = {
    "name",
    "method",
    "seed",
    "rounds",
    "val/loss",
    "val/domains",
    "test",
    "samples_seen",
    "updates_left_out",
    "left_out",
    "clients_retried",
    "clients_dropped",
    "seconds",
    "samples_per_second",
    "projector_sha256",
    "versions",
    "device",
    "exit",
}


def small(folder: Path | None, *more: str) -> Config:
    return load_config(None, [*SMALL, *([f"run.dir={folder}"] if folder else []), *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run"
    train(small(folder))
    return folder


def test_the_run_folder_is_as_promised(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert (summary["name"], summary["method"], summary["exit"]) == ("a run", "fedcmp", "finished")
    assert summary["samples_seen"] == 64
    assert summary["val/loss"]["best"] <= summary["val/loss"]["start"]
    test = summary["test"]
    assert set(test) == TEST
    assert 0 < test["token_accuracy"] < 1
    assert test["cider"] >= 0
    assert test["probe"]["questions"] == 12
    assert test["image_use"] == pytest.approx(test["loss_shuffled"] - test["loss"])
    assert test["loss"] != pytest.approx(summary["val/loss"]["end"], abs=1e-6), "other samples"
    assert summary["projector_sha256"] == params_sha256(load_projector(finished / "projector.safetensors"))
    assert summary["seconds"]["total"] >= summary["seconds"]["train"]
    split = json.loads((finished / "split.json").read_text())
    assert [len(ids) for ids in split["clients"].values()] == split["sizes"] == [8] * 8
    assert split["splits"] == {"train": 64, "val": 16, "test": 16}
    assert {path.name for path in (finished / "figures").iterdir()} >= {"split.png", "split.pdf"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert lines[-1]["val/loss"] == pytest.approx(summary["val/loss"]["end"])
    with Image.open(finished / "captions.png") as picture:
        assert picture.size[0] > 400


def test_captioned_pictures_are_listed_and_the_first_ones_kept(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [set(line) for line in lines] == [{"id", "domain", "reference", "generated", "picture"}] * 4
    assert len({line["domain"] for line in lines}) == 4, "one domain after the other"
    kept = [line["picture"] for line in lines]
    assert kept[2:] == [None, None]
    assert {f"pictures/{path.name}" for path in (finished / "pictures").iterdir()} == set(kept[:2])
    source = build_source(load_config(finished / "config.yaml").data)
    samples = {sample.id: sample for sample in source.samples("test")}
    for line in lines:
        assert line["reference"] == samples[line["id"]].caption
    for line in lines[:2]:
        with Image.open(finished / line["picture"]) as picture:
            assert picture.tobytes() == source.image(samples[line["id"]]).tobytes()


def test_the_saved_config_repeats_the_run_bit_by_bit(finished: Path, tmp_path: Path) -> None:
    config = load_config(finished / "config.yaml", [f"run.dir={tmp_path / 'again'}"])
    again = train(config)
    assert again["projector_sha256"] == json.loads((finished / "summary.json").read_text())["projector_sha256"]


def test_evaluate_finds_what_the_run_found(finished: Path) -> None:
    result = evaluate_run(finished)
    summary = json.loads((finished / "summary.json").read_text())
    assert result["val/loss"] == pytest.approx(summary["val/loss"]["end"], rel=1e-5)
    assert result["test"] == summary["test"]
    assert json.loads((finished / "evaluation.json").read_text())["projector_sha256"] == summary["projector_sha256"]
    (finished / "evaluation.json").unlink()


def test_evaluate_can_be_given_another_projector(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start of the run, which scores as the run's own first record says."""
    shape = load_config(finished / "config.yaml").model.projector
    start = init_params(96, 96, shape, torch_rng(load_config(finished / "config.yaml").run.seed, "projector"))
    other = tmp_path / "other.safetensors"
    save_projector(other, start)
    result = evaluate_run(finished, [f"model.projector.init={other}"])
    summary = json.loads((finished / "summary.json").read_text())
    assert result["projector"] == str(other)
    assert result["projector_sha256"] == params_sha256(start) != summary["projector_sha256"]
    assert result["val/loss"] == pytest.approx(summary["val/loss"]["start"], rel=1e-5)
    assert main(["evaluate", str(finished), f"model.projector.init={other}"]) == 0
    assert f"{finished}: not its own projector, but {other}" in capsys.readouterr().out
    assert main(["evaluate", str(finished)]) == 0
    assert "not its own" not in capsys.readouterr().out
    (finished / "evaluation.json").unlink()


def test_a_run_can_start_from_another_ones_projector(finished: Path, tmp_path: Path) -> None:
    start = finished / "projector.safetensors"
    summary = train(small(tmp_path / "more", f"model.projector.init='{start}'"))
    before = json.loads((finished / "summary.json").read_text())
    assert summary["val/loss"]["start"] == pytest.approx(before["val/loss"]["end"], rel=1e-5)


def test_centralized_sees_the_same_samples(tmp_path: Path) -> None:
    config = small(tmp_path / "c", "centralized.batch_sizes=[4,8]", "centralized.lrs=[1e-3,1e-2]")
    summary = train_centralized(config, tune=True)
    assert summary["samples_seen"] == 64
    assert len(summary["tuning"]) == 4
    best = min(summary["tuning"], key=lambda cell: cell["val/loss"])
    assert summary["chosen"] == {"batch_size": best["batch_size"], "lr": best["lr"]}
    assert summary["val/loss"]["end"] == pytest.approx(best["val/loss"], rel=1e-5)
    assert len(list((tmp_path / "c" / "checkpoints").glob("*.ckpt"))) == 4
    assert {path.name for path in (tmp_path / "c").iterdir()} == FILES
    saved = torch.load(next((tmp_path / "c" / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert all(key.startswith("projector.") for key in saved["state_dict"])


def test_local_trains_each_client_alone(tmp_path: Path) -> None:
    summary = train_local(small(tmp_path / "l"))
    assert set(summary["clients"]) == {str(client) for client in range(8)}
    assert all(one["domains"] == [one["name"]] for one in summary["clients"].values())
    assert summary["val/loss"]["end"] == pytest.approx(sum(one["all"] for one in summary["clients"].values()) / 8)
    hashes = {params_sha256(load_projector(path)) for path in (tmp_path / "l" / "clients").rglob("*.safetensors")}
    assert len(hashes) == 8
    test = summary["test"]
    assert set(test) == TEST - {"digits_named", "digits_by_chance"}
    assert (test["cider"], test["probe"]["questions"]) == (None, 12)
    assert test["loss"] == pytest.approx(sum(test["domains"].values()) / 8)
    assert test["worst_domain"]["loss"] == max(test["domains"].values())


@pytest.mark.parametrize("kind", [train, train_centralized, train_local])
def test_the_test_samples_can_wait(tmp_path: Path, kind, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tracked:
        def __init__(self, *_: object) -> None: ...
        def log(self, record: object) -> None: ...
        def close(self, summary: object, files: list[Path]) -> None:
            self.files = files

    tracked = Tracked()
    monkeypatch.setattr("fedcmp.experiment.base.build_tracker", lambda *_: tracked)
    summary = kind(small(tmp_path / "r", "evaluation.test=false", "federation.rounds=1", "data.scenes_per_camera=4"))
    assert summary["test"] is None
    assert summary["val/loss"]["end"] > 0
    assert not {"captions.png", "captions.jsonl", "pictures"} & {path.name for path in (tmp_path / "r").iterdir()}
    assert "mean of domains" in describe(summary, "r")
    assert "fedcmp" in compare_runs([{**summary, "name": "fedcmp"}])
    if kind is train:
        split = tmp_path / "r" / "figures" / "split.png"
        assert tracked.files == [tmp_path / "r" / "projector.safetensors", split]
        assert evaluate_run(tmp_path / "r")["test"]["loss"] > 0, "whoever asks for it gets it"


def test_a_tracker_gets_what_is_worth_keeping(finished: Path) -> None:
    folder = RunFolder(finished)
    experiment = Experiment.__new__(Experiment)
    experiment.folder = folder
    split = folder.figures / "split.png"
    assert experiment.artefacts() == [folder.captions, folder.captions_list, folder.projector, split]


def test_a_second_run_in_the_same_process_loads_and_computes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    places = {"load_tower": fedcmp.build.kept, "load_llm": fedcmp.build.kept, "see": fedcmp.build.parts}
    for name, place in places.items():
        real = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *args, _real=real, _name=name, **kw: (calls.append(_name), _real(*args, **kw))[1]
        )

    def called() -> dict[str, int]:
        counts = {name: calls.count(name) for name in sorted(set(calls))}
        calls.clear()
        return counts

    keep, everything = Kept(), {"load_llm": 1, "load_tower": 1, "see": 3}
    first = train(small(tmp_path / "1"), keep=keep)
    assert called() == everything
    again = train(small(tmp_path / "2"), keep=keep)
    assert called() == {}
    alone = json.loads((finished / "summary.json").read_text())
    for one in (first, again):
        assert one["projector_sha256"] == alone["projector_sha256"]
        assert one["test"] == alone["test"]
    train_local(
        small(tmp_path / "3", "federation.rounds=1", "data.scenes_per_camera=4", "evaluation.test=false"), keep=keep
    )
    assert called() == {"see": 1}, "fewer training pictures, the same validation pictures"
    other = train(small(tmp_path / "4", "run.seed=1"), keep=keep)
    assert called() == {"see": 3}, "the scenes of another seed have the same ids and are others"
    assert other["test"] == train(small(tmp_path / "5", "run.seed=1"))["test"]
    assert called() == everything, "nothing is kept unasked"
    train_centralized(small(tmp_path / "6", "run.seed=1", "model.keep_cls=true"), keep=keep)
    assert called() == everything, "another tower"
    assert {what: len(table) for what, (_, table) in keep._tables.items()} == {
        "training pictures": 64,
        "validation pictures": 16,
        "test pictures": 16,
    }


def test_runs_without_a_name_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [train(small(None, "federation.rounds=1", "data.scenes_per_camera=4"))["folder"] for _ in range(2)]
    assert folders == ["runs/run-fedcmp-1", "runs/run-fedcmp-2"]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_args: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(fedcmp.build.kept, "load_tower", loaded)
    monkeypatch.setattr(fedcmp.build.kept, "load_llm", loaded)


@pytest.mark.usefixtures("no_models")
def test_bad_input_ends_before_a_model_is_loaded(tmp_path: Path, finished: Path) -> None:
    def fails(error: type[Exception], message: str, *overrides: str, folder: Path = tmp_path / "new") -> None:
        with pytest.raises(error, match=message):
            train(small(folder, *overrides))
        assert not (tmp_path / "new").exists(), "a failed start leaves no folder behind"

    fails(
        DataError,
        r"client 0 \(blurred\) has 8 samples, fewer than one batch \(federation\.batch_size=16\)",
        "federation.batch_size=16",
    )
    fails(RunFolderError, "exists and is not empty", folder=finished)
    fails(ConfigError, r"model\.tower: no folder /no/tower", "model.tower=/no/tower")
    fails(ConfigError, r"model\.llm: no folder", "model.llm=./nowhere")
    fails(ConfigError, r"model\.projector\.init: cannot read", "model.projector.init=none.safetensors")
    fails(ConfigError, r"data\.domains: no camera", "data.domains=[plane]")
    wide = {"linear.weight": torch.zeros(96, 50), "linear.bias": torch.zeros(96)}
    save_projector(tmp_path / "wide.safetensors", wide)
    init = f"model.projector.init={tmp_path / 'wide.safetensors'}"
    fails(
        ConfigError,
        "model.tower: demo has width 96, but the projector .* has width 50",
        init,
        "model.projector.kind=linear",
    )
    fails(ConfigError, r"model\.projector\.kind=mlp2x_gelu needs linear_1\.bias", init)


@pytest.mark.usefixtures("no_models")
def test_no_place_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"is no folder|is a file"):
        train(small(tmp_path / "file" / "run"))
    with pytest.raises(RunFolderError, match="is a file"):
        train(small(tmp_path / "file"))

    def denied(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", denied)
        with pytest.raises(RunFolderError, match=r"no permission .* set run\.dir"):
            train(small(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
        with pytest.raises(RunFolderError, match="only 1 MiB are free"):
            train(small(tmp_path / "run"))


def test_a_failure_in_mid_run_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunFolderError, match=r"round-0001\.pt.*No space left"):
        train(small(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exit"] == "failed"
    assert "No space left" in summary["error"]


def test_evaluate_wants_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        evaluate_run(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"is no finished run: it has no config\.yaml"):
        evaluate_run(tmp_path)


def test_a_failure_is_told_to_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict] = []

    class Tracked:
        def log(self, record: object) -> None:
            raise RuntimeError("no room for records")

        def close(self, summary: dict, files: object = ()) -> None:
            told.append(summary)

    monkeypatch.setattr("fedcmp.experiment.base.build_tracker", lambda *_: Tracked())
    with pytest.raises(RuntimeError, match="no room for records"):
        train(small(tmp_path / "r"))
    assert [one["exit"] for one in told] == ["failed"]
    assert "no room for records" in told[0]["error"]
