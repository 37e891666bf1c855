"""Frozen vision towers and LLMs from a Hugging Face folder, a hub id or the embedded demo."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fedcmp.errors import ConfigError, nearest
from fedcmp.models.projector import ProjectorConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEMO = Path(__file__).parent / "demo"


@dataclass
class ModelConfig:
    """Which frozen models the projector joins, and the projector."""

    tower: str = "demo"
    """Folder or hub id of the vision tower (CLIP, SigLIP, MobileNet, ...); `demo`: the embedded one."""
    llm: str = "demo"
    """Folder or hub id of the language model (any causal LM of transformers); `demo`: the embedded one."""
    llm_dtype: str = "float32"
    """`float32` or `bfloat16` for the frozen language model; the projector is float32 in any case."""
    feature_layer: int = -2
    """Which hidden state of a transformer tower is read: -2 (LLaVA) is the last but one. Feature maps use the last."""
    keep_cls: bool = False
    """Keep the class token of towers that have one."""
    token_grid: int = 0
    """Average the grid of image tokens down to this many a side (24 x 24 to 12 x 12: 12); 0: as the tower has it."""
    end: str = "newline"
    """What ends a caption: `newline` (LLaVA's plain template) or `eos`."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The trainable part."""

    def validate(self, prefix: str = "model") -> None:
        if self.feature_layer >= 0:
            raise ConfigError(
                f"{prefix}.feature_layer counts from the end and must be negative, got {self.feature_layer}"
            )
        if self.llm_dtype not in DTYPES:
            raise ConfigError(f"{prefix}.llm_dtype: unknown type {self.llm_dtype!r}; {nearest(self.llm_dtype, DTYPES)}")
        if self.token_grid < 0 or (self.token_grid and self.keep_cls):
            raise ConfigError(
                f"{prefix}.token_grid must be 0 or more, and 0 with {prefix}.keep_cls, got {self.token_grid}"
            )
        if self.end not in ("newline", "eos"):
            raise ConfigError(f'{prefix}.end must be "newline" or "eos", got {self.end!r}')
        self.projector.validate(f"{prefix}.projector")


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
    """The feature or embedding width that a model folder's config.json promises; None for hub ids and unknown forms."""
    path = Path(resolve(name, kind, key)) / "config.json"
    if not path.is_file():
        return None
    config: dict[str, Any] = json.loads(path.read_text())
    for part in ("vision_config", "text_config"):
        if isinstance(config.get(part), dict) and (part == "vision_config") == (kind == "tower"):
            config = config[part]
    width = config.get("hidden_size")
    return int(width) if width is not None else None


def _freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _hash_weights(model: nn.Module, *extra: object) -> str:
    digest = hashlib.sha256(json.dumps([str(item) for item in extra]).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class VisionTower(nn.Module):
    """A frozen tower: pictures to ``[B, T, d]`` features. Always in eval mode; blocks after the layer are dropped."""

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        feature_layer: int = -2,
        keep_cls: bool = False,
        token_grid: int = 0,
    ) -> None:
        super().__init__()
        self.token_grid = token_grid
        self.model = model
        self.processor = processor
        blocks = _encoder_blocks(model)
        self.is_map = blocks is None
        self.has_cls = hasattr(_embeddings(model), "class_embedding") or hasattr(_embeddings(model), "cls_token")
        self.drop_cls = self.has_cls and not keep_cls
        if blocks is not None:
            wanted = len(blocks) + 1 + feature_layer
            if wanted < 1:  # transformers reports no hidden state of a tower without blocks
                raise ConfigError(
                    f"model.feature_layer is {feature_layer}, but the tower has only {len(blocks)} blocks"
                )
            del blocks[wanted:]
        _freeze(model)
        with torch.inference_mode():
            device = next(model.parameters()).device  # meta, where only shapes are wanted
            probe = self.preprocess([Image.new("RGB", (64, 64))]).to(device)
            self.num_tokens, self.width = self.encode(probe).shape[1:]
        preprocessing = processor.to_json_string() if hasattr(processor, "to_json_string") else processor
        read = (preprocessing, feature_layer, self.drop_cls, token_grid)
        self.fingerprint = "" if device.type == "meta" else _hash_weights(model, *read)
        """Changes with the weights, the preprocessing or the layer read: the key of the feature cache."""

    def train(self, mode: bool = True) -> VisionTower:
        return super().train(False)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures to pixels ``[B, 3, H, W]``."""
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` to features ``[B, T, d]`` in the tower's dtype."""
        features = self._encode(pixels.to(dtype=next(self.model.parameters()).dtype))
        return _pool(features, self.token_grid) if self.token_grid else features

    def _encode(self, pixels: Tensor) -> Tensor:
        if self.is_map:
            maps: Tensor = self.model(pixels).last_hidden_state
            return maps.flatten(2).transpose(1, 2) if maps.dim() == 4 else maps
        states: Tensor = self.model(pixels, output_hidden_states=True).hidden_states[-1]
        return states[:, 1:] if self.drop_cls else states


def _pool(features: Tensor, side: int) -> Tensor:
    """``[B, s * s, d]`` to ``[B, side * side, d]``, means over (nearly) equal parts of the grid."""
    grid = math.isqrt(features.shape[1])
    if grid * grid != features.shape[1] or side > grid:
        raise ConfigError(
            f"model.token_grid={side}, but the tower gives {features.shape[1]} tokens; expected at most the side of a "
            "square grid"
        )
    maps = features.transpose(1, 2).unflatten(2, (grid, grid))
    return nn.functional.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)


def _inner(model: nn.Module) -> nn.Module:
    return getattr(model, "vision_model", model)


def _embeddings(model: nn.Module) -> nn.Module | None:
    return getattr(_inner(model), "embeddings", None)


def _encoder_blocks(model: nn.Module) -> nn.ModuleList | None:
    encoder = getattr(_inner(model), "encoder", None)
    for name in ("layers", "layer"):
        blocks = getattr(encoder, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no reports while weights load: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which of two equal processors it picks, and the like
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def tower_class(model_type: str) -> Any:
    """The class of transformers that reads a tower; full CLIP checkpoints hold a text model, too, which it leaves."""
    import transformers

    classes = {
        "clip": "CLIPVisionModel",
        "clip_vision_model": "CLIPVisionModel",
        "siglip": "SiglipVisionModel",
        "siglip_vision_model": "SiglipVisionModel",
    }
    return getattr(transformers, classes.get(model_type, "AutoModel"))


def read_tower(config: ModelConfig) -> tuple[Any, Any]:
    """The model of transformers that ``model.tower`` names, whole and in float32, and its image processor."""
    import transformers

    path = resolve(config.tower, "tower", "model.tower")
    loader = tower_class(transformers.AutoConfig.from_pretrained(path).model_type)
    with quiet_transformers():
        model = loader.from_pretrained(path, dtype=torch.float32)
        processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)
    return model, processor


def load_tower(config: ModelConfig) -> VisionTower:
    """The vision tower that ``model.tower`` names, in float32, frozen."""
    return VisionTower(*read_tower(config), config.feature_layer, config.keep_cls, config.token_grid)


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM, its tokenizer and what the plain template needs."""

    model: Any
    """The transformers causal LM, eval mode, no gradients."""
    tokenizer: Any
    """Its tokenizer."""
    end_id: int
    """The token that ends a caption."""

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        layers: nn.ModuleList = self.model.get_decoder().layers
        return layers

    @property
    def bos_id(self) -> int | None:
        """The token that opens a sequence, where the family has one."""
        return self.tokenizer.bos_token_id

    @property
    def pad_id(self) -> int:
        """A token for padded positions; they carry no loss and come last, so any will do."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)


def load_llm(config: ModelConfig) -> LanguageModel:
    """The language model that ``model.llm`` names, in ``model.llm_dtype``, frozen."""
    import transformers

    path = resolve(config.llm, "llm", "model.llm")
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[config.llm_dtype])
    model.generation_config = (
        transformers.GenerationConfig()
    )  # captions are greedy: no penalties, no sampling of its own
    _freeze(model)
    end_id = tokenizer.eos_token_id
    if config.end == "newline":
        end_id = tokenizer.encode("a\n", add_special_tokens=False)[-1]
    if end_id is None:
        raise ConfigError(f"model.end=eos, but the tokenizer of {config.llm} has no end-of-sequence token; use newline")
    return LanguageModel(model, tokenizer, int(end_id))
