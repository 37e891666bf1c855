"""What the user says of the frozen models, and where they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedcmp.errors import ConfigError, nearest
from fedcmp.models.projector import ProjectorConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEMO = Path(__file__).parent / "demo"


@dataclass
class ModelConfig:
    """Which frozen models the projector joins, and the projector."""

    tower: str = "demo"
    """Folder or hub id of the vision tower (CLIP, SigLIP, DINOv2, MobileNet, ...); `demo`: the embedded one."""
    llm: str = "demo"
    """Folder or hub id of the language model (any causal LM of transformers); `demo`: the embedded one."""
    tower_dtype: str = "float32"
    """`float32` or `bfloat16` for the frozen vision tower; features are kept and trained on as float16 in any case."""
    llm_dtype: str = "float32"
    """`float32` or `bfloat16` for the frozen language model; the projector is float32 in any case."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the LLM's layers for the backward pass and compute the rest again: half as many more
    operations, and memory for many times the rows (LLaVA-1.5-7B: 0.4 GB a row instead of 2.9)."""
    feature_layer: Any = -2
    """Which hidden state of a transformer tower is read: 0 the embeddings, -1 the last, -2 (LLaVA) the last but one. A
    list such as [-2, -5, -8] puts several side by side: their widths add up. Feature maps have the last one only."""
    keep_cls: bool = False
    """Keep the class token, and register tokens, of towers that have them."""
    token_grid: int = 0
    """Average the grid of image tokens down to this many a side (24 x 24 to 12 x 12: 12); 0: as the tower has it."""
    pixel_shuffle: int = 1
    """Put every r x r neighbours of the grid side by side: tokens / r^2, width * r^2; 1: no. After `token_grid`."""
    end: str = "newline"
    """What ends a caption: `newline` (LLaVA's plain template; line breaks inside captions become spaces) or `eos`."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The trainable part."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of ``feature_layer``, one or more, in the order in which their widths stand."""
        return tuple(self.feature_layer) if isinstance(self.feature_layer, (list, tuple)) else (self.feature_layer,)

    def validate(self, prefix: str = "model") -> None:
        _check_layers(f"{prefix}.feature_layer", self.feature_layer, self.layers)
        for key in ("tower_dtype", "llm_dtype"):
            value = getattr(self, key)
            if value not in DTYPES:
                raise ConfigError(f"{prefix}.{key}: unknown type {value!r}; {nearest(value, DTYPES)}")
        if self.token_grid < 0 or (self.token_grid and self.keep_cls):
            raise ConfigError(
                f"{prefix}.token_grid must be 0 or more, and 0 with {prefix}.keep_cls, got {self.token_grid}"
            )
        if self.pixel_shuffle < 1 or (self.pixel_shuffle > 1 and self.keep_cls):
            raise ConfigError(
                f"{prefix}.pixel_shuffle must be 1 or more, and 1 with {prefix}.keep_cls, got {self.pixel_shuffle}"
            )
        if self.token_grid % self.pixel_shuffle:
            raise ConfigError(
                f"{prefix}.pixel_shuffle={self.pixel_shuffle} does not divide {prefix}.token_grid={self.token_grid}"
            )
        if self.end not in ("newline", "eos"):
            raise ConfigError(f'{prefix}.end must be "newline" or "eos", got {self.end!r}')
        self.projector.validate(f"{prefix}.projector")


def _check_layers(key: str, value: object, layers: tuple[object, ...]) -> None:
    if not layers or any(isinstance(one, bool) or not isinstance(one, int) for one in layers):
        raise ConfigError(f"{key} must be a whole number, or a list of them such as [-2, -5, -8], got {value!r}")
    if len(set(layers)) < len(layers):
        raise ConfigError(f"{key} names a layer twice: {list(layers)}")


def resolve(name: str, kind: str, key: str) -> str:
    """The folder of ``demo``, an existing folder, or a hub id as it stands.

    Raises:
        ConfigError: the name looks like a path and no such folder with a config.json exists.
    """
    if name == "demo":
        return str(DEMO / kind)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{key}: {name} has no config.json; expected a model folder in Hugging Face form")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{key}: no folder {name}; expected a folder in Hugging Face form, a hub id or `demo`")
    return name


def width_of(name: str, kind: str, key: str) -> int | None:
    """The hidden or embedding width that a model folder's config.json promises; None for hub ids and unknown forms."""
    path = Path(resolve(name, kind, key)) / "config.json"
    if not path.is_file():
        return None
    config: dict[str, Any] = json.loads(path.read_text())
    for part in ("vision_config", "text_config"):
        if isinstance(config.get(part), dict) and (part == "vision_config") == (kind == "tower"):
            config = config[part]
    width = config.get("hidden_size")
    return int(width) if width is not None else None
