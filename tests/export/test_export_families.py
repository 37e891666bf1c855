"""Every family of backbones is exported and proved, or refused by name: never half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models.tiny import LLMS, MAPS, TOWERS, save_llm, save_tower
from models.verdicts import llava_holds, llava_selects
from tiny_models import make_params

from fedcmp.errors import ConfigError, ExportError
from fedcmp.export.hf import write_hf
from fedcmp.export.llava import write_llava
from fedcmp.export.proof import Proof
from fedcmp.models.backbones import ModelConfig, load_llm, load_tower


def export(folder: Path, config: ModelConfig) -> Proof:
    folder.mkdir()
    params = make_params(load_tower(config).width, load_llm(config).width)
    return write_hf(folder, config, params, "float32", 9)


@pytest.mark.parametrize("name", LLMS)
def test_llms(name: str, tmp_path: Path) -> None:
    config = ModelConfig(llm=str(save_llm(name, tmp_path / "llm")))
    if llava_holds(load_llm(config)) == "yes":
        assert export(tmp_path / "out", config).same_caption
    else:
        with pytest.raises(ConfigError, match=r"model\.llm=.*: .* has .*, which a Llava cannot hold; runs with"):
            export(tmp_path / "out", config)


@pytest.mark.parametrize("options", [{}, {"keep_cls": True}, {"feature_layer": [-2, -3]}], ids=str)
@pytest.mark.parametrize("name", [name for name in TOWERS if name not in MAPS])
def test_towers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    config, verdict = ModelConfig(tower=str(save_tower(name, tmp_path / "tower")), **options), llava_selects(name)
    if (
        name == "dinov3" and config.keep_cls
    ):  # transformers writes its layer scales by names that its Llava does not read
        with pytest.raises(ExportError, match=r"does not read the export as it was written.*layer_scale1"):
            export(tmp_path / "out", config)
    elif verdict == "yes" or (verdict.startswith("with `keep_cls`") and config.keep_cls):
        assert export(tmp_path / "out", config).same_caption
    else:
        with pytest.raises(ConfigError, match=r"model\.tower=.*: (a Llava reads a hidden state|.* before its patches)"):
            export(tmp_path / "out", config)


def test_a_shuffle_and_for_the_original_several_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.pixel_shuffle=2: .* model\.pixel_shuffle=1 can be exported"):
        export(tmp_path / "out", ModelConfig(pixel_shuffle=2))
    config = ModelConfig(feature_layer=[-2, -3])
    with pytest.raises(ConfigError, match=r"model\.feature_layer=\[-2, -3\]: the original LLaVA reads one"):
        write_llava(tmp_path, config, make_params(192, 96), "float32")
