"""Two hospitals with real pictures: in every round the parameters of a simulation, and captions as always."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hospitals import Lab, simulate
from PIL import Image

from fedcmp.federation.checkpoint import params_sha256
from fedcmp.runs.finished import load_run
from fedcmp.sites.folder import find_data
from fedcmp.sites.settings import site_yaml

RUN = """
data: {kind: pairs, max_train_per_domain: 48, max_val_per_domain: 6, max_test_per_domain: 6, lowercase: true,
       max_caption_tokens: 32}
model: {end: eos}
federation: {rounds: 3, batch_size: 4, keep_checkpoints: 3}
run: {device: cpu}
evaluation: {captions: 0, examples: 0, questions: 0}
wandb: {mode: disabled}
"""
DOMAINS = ("radiology", "xray")


@pytest.mark.shared
def test_two_hospitals_train_what_a_simulation_trains(shared: Path, tmp_path: Path) -> None:
    models = {kind: str(shared / "weights" / name)
              for kind, name in (("tower", "mobilenet_v1_0.5_160"), ("llm", "caption_reader"))}  # fmt: skip
    folders = []
    for name, domain in zip(("hospital-a", "hospital-b"), DOMAINS, strict=True):
        (folder := tmp_path / name).mkdir()
        values = {"name": name, "device": "cpu", "data": find_data(shared / "pairs" / domain), **models}
        (folder / "site.yaml").write_text(site_yaml(values))
        folders.append(folder)
    lab = Lab(tmp_path, folders=folders)
    found = lab.train(text=RUN)
    paths = [f"model.{kind}={path}" for kind, path in models.items()]
    data = [f"data.root={shared / 'pairs'}", f"data.domains=[{','.join(DOMAINS)}]"]
    simulated = simulate(tmp_path / "simulation", *data, *paths, text=RUN)
    assert found["projector_sha256"] == simulated["projector_sha256"]
    for number in range(1, 4):
        one, other = (
            torch.load(next((run / "checkpoints").glob(f"round-{number:04d}-*")), weights_only=True)["params"]
            for run in (lab.run, tmp_path / "simulation")
        )
        assert params_sha256(one) == params_sha256(other)
    loaded, other = load_run(lab.run, paths), load_run(tmp_path / "simulation")
    picture = Image.new("RGB", (64, 64), "grey")
    assert loaded.caption([picture]) == other.caption([picture])
