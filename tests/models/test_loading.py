"""Model folders: where they are, what is known without weights, and files that lack weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from models.tiny import save_tower
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import DEMO, ModelConfig, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower
from fedcmp.models.settings import resolve
from fedcmp.models.towers import read_tower

Weights = dict[str, Tensor]


def changed(source: Path, folder: Path, change: Callable[[Weights], object]) -> str:
    """A model folder with other weights."""
    folder.mkdir(exist_ok=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def without(*parts: str) -> Callable[[Weights], object]:
    def change(weights: Weights) -> None:
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


def widened(weights: Weights) -> None:
    name = next(name for name in weights if "layers.1.mlp" in name and weights[name].dim() == 2)
    weights[name] = torch.cat([weights[name], weights[name][:1]])


@pytest.mark.parametrize(("kind", "change", "named"), [
    ("tower", without("layers.1.mlp.fc1.bias"), "encoder.layers.1.mlp.fc1.bias"),
    ("tower", widened, "encoder.layers.1.mlp.fc1.weight"),
    ("mobilenet", without("conv_stem.first_conv.normalization.running_var"), "conv_stem.first_conv.normalization"),
    ("llm", without("layers.1.mlp.up_proj"), "model.layers.1.mlp.up_proj"),
    ("llm", widened, "model.layers.1.mlp.down_proj.weight"),
])  # fmt: skip
def test_weights_that_are_used_are_needed(
    kind: str, change: Callable[[Weights], object], named: str, tmp_path: Path
) -> None:
    whole = save_tower(kind, tmp_path / "whole") if kind == "mobilenet" else DEMO / kind
    key, load = ("llm", load_llm) if kind == "llm" else ("tower", load_tower)
    with pytest.raises(ConfigError, match=rf"^model\.{key}: {tmp_path / kind} .*{named}"):
        load(ModelConfig(**{key: changed(whole, tmp_path / kind, change)}))


def test_what_no_feature_depends_on_may_be_absent(tmp_path: Path) -> None:
    config = ModelConfig(tower=changed(DEMO / "tower", tmp_path / "tower", without("layers.3.", "post_layernorm")))
    whole, tower = load_tower(ModelConfig()), load_tower(config)
    pixels = whole.preprocess([Image.effect_noise((32, 32), 80).convert("RGB")])
    with torch.inference_mode():
        assert torch.equal(tower.encode(pixels), whole.encode(pixels)), "layer -2 of four blocks reads three"
    assert read_tower(config)[0].config.num_hidden_layers == 4
    with pytest.raises(ConfigError, match=r"encoder\.layers\.3\."):
        load_tower(ModelConfig(tower=config.tower, feature_layer=-1))


def test_a_classifier_has_no_pooler_and_one_fingerprint(tmp_path: Path) -> None:
    options = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**options, image_size=32, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    first, again = (load_tower(ModelConfig(tower=str(tmp_path))) for _ in range(2))
    assert not any(value.any() for name, value in first.model.state_dict().items() if "pooler" in name)
    assert first.fingerprint == again.fingerprint, "noise in the pooler would make a new cache with every run"


def test_only_a_tied_head_may_be_absent(tmp_path: Path) -> None:
    load_llm(ModelConfig())  # whose head is its embedding
    folder = Path(changed(DEMO / "llm", tmp_path / "llm", lambda weights: None))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        load_llm(ModelConfig(llm=str(folder)))


def test_folders_are_found_and_what_is_not_on_this_machine_is_unknown(tmp_path: Path) -> None:
    for name in ("./nowhere", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"^model\.tower: no folder"):
            resolve(name, "tower", "model.tower")
    assert resolve("openai/clip-vit-large-patch14-336", "tower", "k") == "openai/clip-vit-large-patch14-336"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    for tower, llm in (("no/such-tower", "no/such-llm"), (str(tmp_path), str(tmp_path))):
        config = ModelConfig(tower=tower, llm=llm)
        assert outline_tower(config) is outline_llm(config) is None
