"""Folders that cannot be written, data that is not there, a demo that is broken."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

from fedcmp.data.settings import DataConfig
from fedcmp.doctor.finding import Finding
from fedcmp.doctor.storage import data, demo, models, shared_data, writable
from fedcmp.models import backbones
from fedcmp.models.backbones import ModelConfig
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.seeding import torch_rng


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    finding = writable(tmp_path / "a" / "b", "run folders", "run.dir")
    assert finding.status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_or_without_permission_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    finding = writable(tmp_path / "file" / "runs", "run folders", "run.dir")
    assert finding.status == "fatal"
    assert finding.mend == "set run.dir to another place"

    def refused(**options: object) -> None:  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fedcmp.doctor.storage.tempfile.NamedTemporaryFile", refused)
    finding = writable(tmp_path, "feature cache", "data.cache_dir")
    assert finding.status == "fatal"
    assert "cannot be written (Permission denied)" in finding.what


@pytest.mark.parametrize(("free", "status"), [(10**6, "fatal"), (5 * 10**8, "warn"), (10**10, "ok")])
def test_a_full_disk(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    assert writable(tmp_path, "run folders", "run.dir").status == status


def test_shared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_data({}).status == "ok"
    (tmp_path / "pairs").mkdir()
    finding = shared_data({"FEDCMP_DATA": str(tmp_path)})
    assert finding.status == "warn"
    assert "has no weights" in finding.what
    (tmp_path / "weights").mkdir()
    assert shared_data({"FEDCMP_DATA": str(tmp_path)}).status == "ok"


def test_the_demo_loads_and_a_broken_one_is_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert demo().status == "ok"
    monkeypatch.setattr("fedcmp.models.config.DEMO", tmp_path)
    finding = demo()
    assert finding.status == "fatal"
    assert "install fedcmp anew" in finding.mend
    assert "\n" not in finding.line()


def test_models_of_a_config(tmp_path: Path) -> None:
    assert models(ModelConfig()) == []
    good = str(backbones.DEMO / "tower")
    (tmp_path / "config.json").write_text('{"model_type": "never heard of"}')
    wrong = ModelConfig("./nowhere", str(tmp_path), projector=ProjectorConfig(init=str(tmp_path / "p.safetensors")))
    assert [finding.status for finding in models(wrong)] == ["fatal", "warn", "fatal"]
    assert [finding.status for finding in models(ModelConfig(good, "nobody/no-such-llm"))] == ["ok", "warn"]
    assert "hf download" in models(ModelConfig(good, "nobody/no-such-llm"))[1].mend


def test_a_projector_to_start_from_may_be_a_file_or_a_folder(tmp_path: Path) -> None:
    def finding(path: Path) -> Finding:
        (found,) = models(ModelConfig(projector=ProjectorConfig(init=str(path))))
        return found

    run, empty = tmp_path / "run", tmp_path / "empty"
    for folder in (run, empty):
        folder.mkdir()
    save_file(init_params(4, 8, ProjectorConfig(), torch_rng(0)), run / "projector.safetensors")
    assert finding(run).status == finding(run / "projector.safetensors").status == "ok"
    for path, what in ((empty, "holds no projector"), (tmp_path / "nowhere", "no such file or folder")):
        assert finding(path).status == "fatal"
        assert what in finding(path).what
    (empty / "projector.safetensors").write_bytes(b"cut off")
    assert finding(empty).status == "fatal"


def test_data_of_a_config(tmp_path: Path) -> None:
    assert data(DataConfig()) == []
    (tmp_path / "xray").mkdir()
    assert [finding.status for finding in data(DataConfig("pairs", str(tmp_path), ["xray"]))] == ["ok"]
    missing = data(DataConfig("pairs", str(tmp_path), ["xray", "moon"]))
    assert [finding.status for finding in missing] == ["fatal"]
    assert "moon" in missing[0].what
    files = data(DataConfig("file", train=str(tmp_path), val="nowhere.json", images="nowhere.zip"))
    assert [finding.what.split(":")[0] for finding in files] == ["data.val", "data.images"]
    there, gone = str(tmp_path), str(tmp_path / "missing.jsonl")
    (tested,) = data(DataConfig("file", train=there, val=there, test=gone, images=there))
    assert (tested.status, tested.what) == ("fatal", f"data.test: no file or folder {gone}")
    (whole,) = data(DataConfig("file", train=there, images=there))
    assert whole.what == f"data: {there}, {there}", "what is unset is no path"
