"""The settings of the frozen models, and where their folders are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedcmp.errors import ConfigError, check_choice
from fedcmp.models.projector import ProjectorConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ENDS = ("newline", "eos")
DEMO = Path(__file__).parent / "demo"


@dataclass
class ModelConfig:
    """Which frozen models the projector joins, and the projector."""

    tower: str = "demo"
    """Folder or hub id of the vision tower; `demo`: the embedded one."""
    llm: str = "demo"
    """Folder or hub id of the language model; `demo`: the embedded one."""
    tower_dtype: str = "float32"
    """`float32` or `bfloat16` for the tower; its features are float16."""
    llm_dtype: str = "float32"
    """`float32` or `bfloat16` for the LLM; the projector is float32."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the LLM's layers for the backward pass and compute the rest again: half as many more
    operations, less memory (LLaVA-1.5-7B: 0.4 GB a row instead of 2.9)."""
    feature_layer: Any = -2
    """Which hidden state of the tower is read: 0 the embeddings, -1 the last, -2 (LLaVA) the last but one; a list such
    as [-2, -5, -8]: several side by side. Feature maps have the last one only."""
    keep_cls: bool = False
    """Keep the class token, and register tokens, of towers that have them."""
    token_grid: int = 0
    """Average the grid of image tokens down to this many a side; 0: as the tower has it."""
    pixel_shuffle: int = 1
    """Put every r x r neighbours of the grid side by side: tokens / r^2, width * r^2; 1: no. After `token_grid`."""
    end: str = "newline"
    """What ends a caption: `newline` (LLaVA's plain template; line breaks inside captions become spaces) or `eos`."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The trainable part."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of ``feature_layer``, one or more, in the order of their widths in a feature."""
        return tuple(self.feature_layer) if isinstance(self.feature_layer, (list, tuple)) else (self.feature_layer,)

    def validate(self, prefix: str = "model") -> None:
        if not self.layers or any(type(layer) is not int for layer in self.layers):
            raise ConfigError(f"{prefix}.feature_layer: expected whole numbers, got {self.feature_layer!r}")
        if len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"{prefix}.feature_layer names a layer twice: {list(self.layers)}")
        for key, choices in (("tower_dtype", DTYPES), ("llm_dtype", DTYPES), ("end", ENDS)):
            check_choice(f"{prefix}.{key}", getattr(self, key), choices)
        for key, least in (("token_grid", 0), ("pixel_shuffle", 1)):
            value = getattr(self, key)
            if value < least or (value > least and self.keep_cls):
                raise ConfigError(f"{prefix}.{key} must be at least {least}, or {least} with keep_cls, got {value}")
        if self.token_grid % self.pixel_shuffle:
            raise ConfigError(
                f"{prefix}.pixel_shuffle={self.pixel_shuffle} does not divide token_grid={self.token_grid}"
            )
        self.projector.validate(f"{prefix}.projector")


def describe_demo(model: ModelConfig) -> str:
    """A note for data that are not the demo's; empty where neither model is the demo's."""
    keys = [f"model.{key}" for key in ("tower", "llm") if getattr(model, key) == "demo"]
    small = "the demo's embedded model, made for its pictures and words; name another for real data"
    return f"{' and '.join(keys)}: {small}" if keys else ""


def resolve(name: str, kind: str, key: str) -> str:
    """The folder of ``demo`` (``kind``: tower or llm), an existing folder, or a hub id unchanged.

    Raises:
        ConfigError: the name looks like a path and no such folder with a config.json exists.
    """
    if name == "demo":
        return str(DEMO / kind)
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return str(path)
    if path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{key}: no folder {name} with a config.json; expected one, a hub id or `demo`")
    return name


def find_folder(name: str, key: str) -> Path | None:
    """The folder of a model on this machine, that of a hub id in the cache of the hub; None: it is not there.

    Raises:
        ConfigError: as ``resolve``.
    """
    path = Path(resolve(name, key.partition(".")[2], key))
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None
