"""`fedcmp export` from a finished run: whole or not at all, and only what is worth it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import small
import torch
import yaml
from PIL import Image

import fedcmp.runs.export
from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.data.images import to_rgb
from fedcmp.errors import CheckpointError, ConfigError, ExportError, RunFolderError
from fedcmp.export.card import Licences, Origin, is_hub_id, model_card, shown
from fedcmp.federation.checkpoint import load_projector, params_sha256, save_projector
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.runs.baselines import train_local
from fedcmp.runs.export import export_run
from fedcmp.runs.train import train
from fedcmp.seeding import torch_rng

SMALL = [*small.SMALL, "evaluation.captions=0", "evaluation.examples=0", "evaluation.max_tokens=64"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run"
    train(load_config(None, [*SMALL, f"run.dir={folder}"]))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rewrite(run: Path, **changes: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, **changes}))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "out" in path.name)


def test_the_command_exports_and_says_how_near(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    words = [
        "--license",
        "apache-2.0",
        "--data-license",
        "CC BY 4.0",
        "--tower-license",
        "mit",
        "--llm-license",
        "llama2",
    ]
    assert main(["export", str(finished), "--to", "hf", "--out", str(out), *words]) == 0
    said = capsys.readouterr().out
    assert said == (
        f"wrote {out} (--to hf, float32)\nread again and asked of a picture: its logits and the run's are equal to the "
        "bit; its first words are the same\n"
    )
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava", "federated-learning", "fedcmp"],
    }
    summary = json.loads((finished / "summary.json").read_text())
    for row in (
        "| method | fedcmp |",
        "| data | scenes |",
        "| training pairs | 64 |",
        "| clients | 8 |",
        "| rounds | 2 |",
        f"| samples seen | {summary['samples_seen']} |",
        f"| validation loss a token, end | {summary['val/loss']['end']:.4f} |",
        f"| test loss a token | {summary['test']['loss']:.4f} |",
        f"| projector sha256 | `{summary['projector_sha256']}` |",
        "| vision tower | fedcmp's embedded demo | mit |",
        "| language model | fedcmp's embedded demo | llama2 |",
        "| training data | scenes | CC BY 4.0 |",
    ):
        assert row in card, row
    assert "equal to the bit to those of the run's own parts" in card
    assert str(finished.parent) not in card


def test_a_run_goes_on_from_either_export(finished: Path, tmp_path: Path) -> None:
    params = load_projector(finished / "projector.safetensors")
    end = json.loads((finished / "summary.json").read_text())["val/loss"]["end"]
    for to in ("hf", "llava"):
        export_run(finished, to, tmp_path / to)
        more = [
            *SMALL,
            "federation.rounds=1",
            f"run.dir={tmp_path / 'more' / to}",
            f"model.projector.init={tmp_path / to}",
        ]
        assert train(load_config(None, more))["val/loss"]["start"] == pytest.approx(end, rel=1e-5)
    with pytest.raises(ConfigError, match=r"model\.projector\.kind=linear needs linear\.bias, linear\.weight"):
        train(load_config(None, [*more, "model.projector.kind=linear", f"run.dir={tmp_path / 'other'}"]))
    card = (tmp_path / "llava" / "README.md").read_text()
    assert "--mm_projector_type mlp2x_gelu" in card
    assert "library_name" not in card
    weights = torch.load(tmp_path / "llava" / "mm_projector.bin", weights_only=True)
    assert torch.equal(weights["model.mm_projector.2.weight"], params["linear_2.weight"])


def test_only_finished_runs_with_a_shared_projector(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run folder .*nowhere"):
        export_run(tmp_path / "nowhere", "hf", tmp_path / "out")
    rewrite(run, exit="stopped")
    with pytest.raises(
        RunFolderError, match=r"is no finished run: .* exit 'stopped'; go on with: fedcmp train --resume"
    ):
        export_run(run, "hf", tmp_path / "out")
    rewrite(run, exit="finished")
    (run / "projector.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"is no finished run: it has no projector\.safetensors"):
        export_run(run, "hf", tmp_path / "out")
    (run / "summary.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"is no finished run: cannot read summary\.json"):
        export_run(run, "hf", tmp_path / "out")
    local = tmp_path / "local"
    train_local(load_config(None, [*SMALL, "partition.clients=2", f"run.dir={local}"]))
    with pytest.raises(RunFolderError, match="run of `fedcmp local`: it has a projector for each client"):
        export_run(local, "hf", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_only_projectors_that_training_changed(run: Path, tmp_path: Path) -> None:
    drawn = init_params(96, 96, ProjectorConfig(), torch_rng(0, "projector"))
    save_projector(run / "projector.safetensors", drawn)
    with pytest.raises(ExportError, match=r"is not the projector of summary\.json: their hashes differ"):
        export_run(run, "llava", tmp_path / "out")
    rewrite(run, projector_sha256=params_sha256(drawn))
    with pytest.raises(ExportError, match="is what the run started from: it was not trained"):
        export_run(run, "llava", tmp_path / "out")
    config = (run / "config.yaml").read_text()
    start = tmp_path / "start.safetensors"
    shutil.copy(run / "projector.safetensors", start)
    (run / "config.yaml").write_text(config.replace("    init: null", f"    init: {start}"))
    with pytest.raises(ExportError, match="is what the run started from"):
        export_run(run, "llava", tmp_path / "out")
    drawn["linear_1.bias"][0] = torch.nan
    save_projector(run / "projector.safetensors", drawn)
    with pytest.raises(CheckpointError, match=r"projector\.safetensors: linear_1\.bias is not finite"):
        export_run(run, "llava", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_start_that_is_gone_is_only_told(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("    init: null", "    init: gone.safetensors"))
    export_run(run, "llava", tmp_path / "out")
    assert "whether training changed the projector cannot be told" in caplog.text


def test_the_folder_appears_whole_or_not_at_all(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "out"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"--out .*out exists and is not empty"):
        export_run(finished, "llava", full)
    with pytest.raises(RunFolderError, match=r"--out .*mine\.txt is a file"):
        export_run(finished, "llava", full / "mine.txt")
    with pytest.raises(RunFolderError, match=r"cannot make the folder --out .*mine\.txt/below"):
        export_run(finished, "llava", full / "mine.txt" / "below")
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    (full / "mine.txt").unlink()

    right = fedcmp.runs.export.write_llava

    def dies(folder: Path, *rest: object) -> None:
        right(folder, *rest)
        assert (folder / "mm_projector.bin").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(fedcmp.runs.export, "write_llava", dies)
    with pytest.raises(KeyboardInterrupt):
        export_run(finished, "llava", full)
    assert list(full.iterdir()) == []
    assert leftovers(tmp_path) == ["out"]
    monkeypatch.undo()
    export_run(finished, "llava", full)
    assert {path.name for path in full.iterdir()} == {"mm_projector.bin", "config.json", "README.md"}


def test_a_full_disk_is_said_before_weights_are_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(RunFolderError, match=r"the export needs 3 MiB, but only 1 are free in "):
        export_run(finished, "hf", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_words_that_are_wrong(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r'--to: unknown format .*did you mean "llava"'):
        export_run(finished, "lava", out)
    with pytest.raises(ConfigError, match=r'--dtype: unknown type .*did you mean "bfloat16"'):
        export_run(finished, "hf", out, dtype="bf16")
    with pytest.raises(
        ConfigError, match=r"export cannot change model\.feature_layer: -2 -> -1; expected model\.tower or"
    ):
        export_run(finished, "hf", out, ["model.feature_layer=-1"])
    with pytest.raises(ConfigError, match=r"model\.llm: no folder \./moved"):
        export_run(finished, "hf", out, ["model.llm=./moved"])
    assert main(["export", str(finished), "another", "--to", "hf", "--out", str(out)]) == 2
    assert "export needs one run folder, got" in capsys.readouterr().err
    assert leftovers(tmp_path) == []


def test_models_may_have_moved(run: Path, tmp_path: Path) -> None:
    from fedcmp.models.backbones import DEMO

    for kind in ("tower", "llm"):
        shutil.copytree(DEMO / kind, tmp_path / kind)
    moved = [f"model.{kind}={tmp_path / kind}" for kind in ("tower", "llm")]
    done = export_run(run, "hf", tmp_path / "out", moved, dtype="bfloat16", licences=Licences(llm="other"))
    assert done.dtype == "bfloat16"
    assert done.proof is not None
    assert 0 < done.proof.difference < 0.05
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| language model | llm (a local folder) | other |" in card
    assert "near (the largest difference is" in card


def test_the_card_shows_how_to_use_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tower: VisionTower, llm: LanguageModel
) -> None:
    picture = Image.effect_noise((48, 40), 90).convert("RGB")
    picture.save(tmp_path / "picture.png")
    export_run(finished, "hf", tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {"FOLDER": str(tmp_path / "out"), "PICTURE": str(tmp_path / "picture.png")})
    params = load_projector(finished / "projector.safetensors")
    module = ProjectorAlignment(tower, llm, params)
    wanted = module.captions({"pixels": tower.preprocess([picture])})[0]
    assert capsys.readouterr().out.strip() == wanted
    assert len(wanted) > 5


def test_the_line_of_the_card_scales_16_bit_as_training_does() -> None:
    card = model_card(Origin("demo", "demo", {"name": "a"}), Licences(), "hf", "float32", None, "linear")
    line = card.split("training did, by `")[1].split("`")[0]
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    names = {"PIL": PIL, "numpy": np, "picture": Image.fromarray(values)}
    exec(f"scaled = {line}", names)
    scaled = names["scaled"]
    assert np.array_equal(np.asarray(scaled.convert("RGB")), np.asarray(to_rgb(Image.fromarray(values))))
    line = card.split("on white, as training did, by\n`")[1].split("`")[0]
    clear = Image.merge("LA", (Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90)))
    names = {"PIL": PIL, "picture": clear}
    exec(f"white = {line}", names)
    assert np.allclose(np.asarray(names["white"]), np.asarray(to_rgb(clear)), atol=1)


def test_base_models_of_the_hub_are_named() -> None:
    origin = Origin("openai/clip-vit-large-patch14-336", "./models/llm", {"name": "a"})
    card = model_card(origin, Licences(), "llava", "float32", None, "linear")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["openai/clip-vit-large-patch14-336"]
    assert "--mm_projector_type linear --vision_tower openai/clip-vit-large-patch14-336" in card
    assert is_hub_id("openai/clip-vit-large-patch14-336")
    assert not is_hub_id("demo")
    assert not is_hub_id("./models/llm")
    assert shown("lmsys/vicuna-7b-v1.5") == "lmsys/vicuna-7b-v1.5"
    assert shown("./models/vicuna") == "vicuna (a local folder)"
