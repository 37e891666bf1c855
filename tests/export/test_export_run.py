"""`fedcmp export` from a finished run: whole or not at all, and only what is worth it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import fedcmp.runs.export
from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.errors import CheckpointError, ConfigError, ExportError, RunFolderError
from fedcmp.export.card import Licences, model_card
from fedcmp.federation.checkpoint import load_projector, params_sha256, save_projector
from fedcmp.models.backbones import DEMO, LanguageModel, ModelConfig, VisionTower
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.runs.export import export_run
from fedcmp.runs.train import train
from fedcmp.seeding import torch_rng

SMALL = [*small.SMALL, "evaluation.captions=0", "evaluation.examples=0", "evaluation.max_tokens=64"]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def rewrite(run: Path, **changes: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, **changes}))


def test_the_command_exports_with_a_card_and_a_script_that_captions(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tower: VisionTower, llm: LanguageModel
) -> None:
    out = tmp_path / "new" / "out"
    words = "--license apache-2.0 --data-license CC-BY-4.0 --tower-license mit --llm-license llama2"
    assert main(["export", str(tiny_run), "--to", "hf", "--out", str(out), *words.split()]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["library_name"]) == ("apache-2.0", "transformers")
    summary = json.loads((tiny_run / "summary.json").read_text())
    for row in (
        "| method | fedcmp |", "| training pairs | 64 |", "| clients | 8 |",
        f"| validation loss a token, end | {summary['val/loss']['end']:.4f} |",
        f"| projector sha256 | `{summary['projector_sha256']}` |", "| vision tower | fedcmp's embedded demo | mit |",
        "| language model | fedcmp's embedded demo | llama2 |", "| training data | scenes | CC-BY-4.0 |",
    ):  # fmt: skip
        assert row in card, row
    assert str(tiny_run.parent) not in card

    picture = Image.effect_noise((48, 40), 90).convert("RGB")
    picture.save(tmp_path / "picture.png")
    script = [sys.executable, str(out / "use.py"), "picture.png"]
    told = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    module = ProjectorAlignment(tower, llm, load_projector(tiny_run / "projector.safetensors"))
    wanted = module.captions({"pixels": tower.preprocess([picture])}, 12)[0]
    assert json.loads(told) == {"picture": "picture.png", "caption": wanted}
    assert len(wanted) > 5


def test_a_run_goes_on_from_either_export(tiny_run: Path, tmp_path: Path) -> None:
    end = json.loads((tiny_run / "summary.json").read_text())["val/loss"]["end"]
    for to in ("hf", "llava"):
        export_run(tiny_run, to, tmp_path / to)
        start = [f"run.dir={tmp_path / 'more' / to}", f"model.projector.init={tmp_path / to}"]
        more = [*SMALL, "federation.rounds=1", *start]
        assert train(load_config(None, more))["val/loss"]["start"] == pytest.approx(end, rel=1e-5)
    with pytest.raises(ConfigError, match=r"model\.projector\.kind=linear"):
        train(load_config(None, [*more, "model.projector.kind=linear", f"run.dir={tmp_path / 'other'}"]))


def test_only_finished_runs_with_their_projector(run: Path, tmp_path: Path) -> None:
    rewrite(run, exit="stopped")
    with pytest.raises(RunFolderError, match=str(run)):
        export_run(run, "hf", tmp_path / "out")
    rewrite(run, exit="finished")
    (run / "projector.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"projector\.safetensors"):
        export_run(run, "hf", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_only_projectors_that_training_changed(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, out = (run / "config.yaml").read_text(), tmp_path / "out"

    def start_from(path: object) -> None:
        (run / "config.yaml").write_text(config.replace("    init: null", f"    init: {path}"))

    start_from("gone.safetensors")
    export_run(run, "llava", tmp_path / "other", licences=Licences(llm="other"))
    assert "whether training changed the projector" in caplog.text
    terms = (tmp_path / "other" / "README.md").read_text().partition("## Terms")[2]
    assert [line.split(" | ")[-1] for line in terms.splitlines() if " | " in line][1:] == [
        *("unknown |", "apache-2.0 |", "other |", "apache-2.0; its digits: CC BY 4.0 |")
    ], "those of the demo are known"
    start_from("null")
    drawn = init_params(96, 96, ProjectorConfig(), torch_rng(0, "projector"))
    save_projector(run / "projector.safetensors", drawn)
    with pytest.raises(ExportError, match=r"summary\.json"):
        export_run(run, "llava", out)
    rewrite(run, projector_sha256=params_sha256(drawn))
    shutil.copy(run / "projector.safetensors", tmp_path / "start.safetensors")
    for start in ("null", tmp_path / "start.safetensors"):
        start_from(start)
        with pytest.raises(ExportError, match="started from"):
            export_run(run, "llava", out)
    drawn["linear_1.bias"][0] = torch.nan
    save_projector(run / "projector.safetensors", drawn)
    with pytest.raises(CheckpointError, match=r"linear_1\.bias is not finite"):
        export_run(run, "llava", out)
    assert not out.exists()


def test_the_folder_appears_whole_or_not_at_all(tiny_run: Path, tmp_path: Path, monkeypatch) -> None:
    full = tmp_path / "out"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for path in (full, full / "mine.txt", full / "mine.txt" / "below"):
        with pytest.raises(RunFolderError, match=f"--out {path}"):
            export_run(tiny_run, "llava", path)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    (full / "mine.txt").unlink()
    right, usage = fedcmp.runs.export.write_llava, shutil.disk_usage(tmp_path)

    def dies(folder: Path, *rest: object) -> None:
        right(folder, *rest)
        assert (folder / "mm_projector.bin").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fedcmp.runs.export, "write_llava", dies)
        with pytest.raises(KeyboardInterrupt):
            export_run(tiny_run, "llava", full)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
        with pytest.raises(RunFolderError, match="MiB"):
            export_run(tiny_run, "hf", full)
    assert list(full.iterdir()) == []
    assert list(tmp_path.glob("*out*")) == [full]
    export_run(tiny_run, "llava", full)
    assert {path.name for path in full.iterdir()} == {"mm_projector.bin", "config.json", "README.md"}


def test_words_that_are_wrong(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for to, overrides, dtype, key in (
        ("lava", [], None, "--to"),
        ("hf", [], "bf16", "--dtype"),
        ("hf", ["model.feature_layer=-1"], None, r"model\.feature_layer"),
        ("hf", ["model.llm=./moved"], None, r"model\.llm"),
    ):
        with pytest.raises(ConfigError, match=key):
            export_run(tiny_run, to, out, overrides, dtype=dtype)
    assert main(["export", str(tiny_run), "another", "--to", "hf", "--out", str(out)]) == 2
    assert "one run folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_models_may_have_moved_and_those_of_the_hub_are_named(run: Path, tmp_path: Path) -> None:
    for kind in ("tower", "llm"):
        shutil.copytree(DEMO / kind, tmp_path / kind)
    moved = [f"model.{kind}={tmp_path / kind}" for kind in ("tower", "llm")]
    done = export_run(run, "hf", tmp_path / "out", moved, dtype="bfloat16", licences=Licences(llm="other"))
    assert 0 < done.proof.difference < 0.05
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "vision tower | tower (a local folder) | unknown |",
        "language model | llm (a local folder) | other |",
    ):
        assert f"| {text}" in card
    assert "of the largest from those of the run." in card
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    trained = load_projector(run / "projector.safetensors")["linear_1.weight"]
    assert torch.equal(weights["multi_modal_projector.linear_1.weight"], trained.to(torch.bfloat16))
    models = ModelConfig("openai/clip-vit-large-patch14-336", "./models/llm", projector=ProjectorConfig("linear"))
    card = model_card(models, {"name": "a"}, Licences(), "llava", "float32", None)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["openai/clip-vit-large-patch14-336"]
    assert "--mm_projector_type linear" in card
    assert "--mm_vision_select_layer -2 --mm_vision_select_feature patch" in card
