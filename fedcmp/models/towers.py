"""Frozen vision towers: loading one, which hidden states are read, which tokens are kept, and how many are left.

Fewer tokens are the grid averaged, or folded into the width; nothing of that is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fedcmp.errors import ConfigError
from fedcmp.models.blocks import count_prefix, drop_blocks, find_blocks, read_states, whole_depth
from fedcmp.models.loading import freeze, hash_weights, load_whole, loading, refuse
from fedcmp.models.settings import DTYPES, ModelConfig, resolve

VISION_CLASSES = {
    f"{name}{part}": f"{kind}VisionModel"
    for name, kind in (("clip", "CLIP"), ("siglip", "Siglip"), ("siglip2", "Siglip2"))
    for part in ("", "_vision_model")
}
"""``model_type`` of families whose full checkpoints have a text model, which these classes leave out."""

BLANK = Image.new("RGB", (64, 64))


class VisionTower(nn.Module):
    """A frozen tower: pictures to features ``[B, T, d]``. Always in eval mode; blocks after those read are dropped.

    Args:
        model: a vision model of transformers; the blocks behind those read are dropped in place.
        processor: its image processor.
        feature_layer, keep_cls, token_grid, pixel_shuffle: as in ``ModelConfig``.
        dtype: of the model's weights and activations.

    Raises:
        ConfigError: the tower has no such layer, or its grid does not fit.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        feature_layer: int | Sequence[int] = -2,
        keep_cls: bool = False,
        token_grid: int = 0,
        pixel_shuffle: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.token_grid, self.pixel_shuffle = token_grid, pixel_shuffle
        layers = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
        # stages of a pyramid differ in width and grid: only what comes out of the last is a feature map
        blocks = None if hasattr(model.config, "depths") else find_blocks(model)
        self.is_map = blocks is None
        self.num_prefix = 0 if self.is_map else count_prefix(model)
        self.drop_cls = self.num_prefix > 0 and not keep_cls
        self.depths = _depths(layers, blocks)
        if blocks is not None:
            drop_blocks(blocks, max(1, *self.depths))
        self.blocks = list(blocks or ())
        freeze(model)
        with torch.inference_mode():
            device = next(model.parameters()).device  # meta, where only shapes are wanted
            probe = self.preprocess([BLANK]).to(device)
            states = self._states(probe)
            self.grid = self._find_grid(probe, states)
            check_grid(self.grid, token_grid, pixel_shuffle)
            self.num_tokens, self.width = self._select(states).shape[1:]
        described = processor.to_json_string() if hasattr(processor, "to_json_string") else processor
        read = (described, layers, self.drop_cls, token_grid, pixel_shuffle, self.num_prefix, dtype)
        self.fingerprint = "" if device.type == "meta" else hash_weights(model, *read)
        """Changes with the weights, the preprocessing, or what is read of the tower: the key of the feature cache."""
        model.to(dtype)

    def train(self, mode: bool = True) -> VisionTower:
        return super().train(False)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures to pixels: ``[B, 3, H, W]``, or ``[B, T, 3 * patch^2]`` for towers that take patches."""
        pictures, options = list(images), {}
        if patches := self.naflex_side:
            side = patches * self.processor.patch_size
            pictures = [picture.resize((side, side), self.processor.resample) for picture in pictures]
            options["max_num_patches"] = patches**2
        pixels: Tensor = self.processor(images=pictures, return_tensors="pt", **options)["pixel_values"]
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels to features ``[B, T, d]`` in the tower's dtype."""
        return self._select(self._states(pixels))

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Tensor:
        """Pixels to features ``[B, T, d]`` in float16, as a cache keeps them, a few pictures at a time."""
        # on a CPU large activations are 2.4 times slower, and small ones cost little more than the calls
        small = 64 * self.num_tokens * self.width <= 2**18
        parts = pixels.split(64 if pixels.is_cuda or small else 8)
        return torch.cat([self.encode(part).to(torch.float16) for part in parts])

    @property
    def naflex_side(self) -> int:
        """Patches a side of SigLIP2's towers of any shape (NaFlex), whose pictures we make square; 0 for others."""
        return math.isqrt(getattr(self.processor, "max_num_patches", 0))

    def _states(self, pixels: Tensor) -> list[Tensor]:
        """What the tower gives, whole: ``[B, T', d]`` for each layer, or one map ``[B, d, H, W]``."""
        inputs: dict[str, Any] = {"pixel_values": pixels.to(dtype=next(self.model.parameters()).dtype)}
        if self.naflex_side:
            shapes = torch.full((len(pixels), 2), self.naflex_side, device="cpu")  # it is read number by number
            inputs |= {"pixel_attention_mask": None, "spatial_shapes": shapes}
        if self.is_map:
            return [self.model(**inputs).last_hidden_state]
        return read_states(self.blocks, self.depths, lambda: self.model(**inputs))

    def _find_grid(self, pixels: Tensor, states: list[Tensor]) -> tuple[int, int]:
        """Rows and columns of image tokens, by the patches of the picture where the tower has patches."""
        if states[0].dim() == 4:
            return states[0].shape[2], states[0].shape[3]
        tokens, patch = states[0].shape[1] - self.num_prefix, getattr(self.model.config, "patch_size", None)
        side = math.isqrt(tokens)
        rows, columns = (side, side) if self.is_map or side * side == tokens else (1, tokens)
        if not self.is_map and patch is not None and pixels.dim() == 4:
            high, wide = patch if isinstance(patch, (list, tuple)) else (patch, patch)
            rows, columns = pixels.shape[2] // high, pixels.shape[3] // wide
        if rows * columns != tokens:
            kind = self.model.config.model_type
            raise ConfigError(f"model.tower: a {kind} gives {tokens} tokens; expected {rows} x {columns} patches")
        return rows, columns

    def _select(self, states: list[Tensor]) -> Tensor:
        if states[0].dim() == 4:
            features = states[0].flatten(2).transpose(1, 2)
        else:
            skip = self.num_prefix if self.drop_cls else 0
            parts = [state[:, skip:] for state in states]
            features = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        grid = self.grid
        if self.token_grid:
            features, grid = average(features, grid, self.token_grid), (self.token_grid, self.token_grid)
        return pixel_shuffle(features, grid, self.pixel_shuffle) if self.pixel_shuffle > 1 else features


def _depths(layers: Sequence[int], blocks: nn.ModuleList | None) -> list[int]:
    """Layers counted from either end to depths from the front."""
    if blocks is None:
        if len(layers) > 1:
            raise ConfigError(f"model.feature_layer is {list(layers)}, but the tower gives feature maps: expected one")
        return []
    count = whole_depth(blocks)
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise ConfigError(f"model.feature_layer is {layer}; a tower of {count} has {-count - 1} to {count}")
    depths = [layer if layer >= 0 else count + 1 + layer for layer in layers]
    if max(depths) > len(blocks):
        raise ConfigError(
            f"model.feature_layer is {layers}: an earlier tower dropped blocks of this model; load it again"
        )
    return depths


def meta_tower(config: ModelConfig, *, local: bool) -> VisionTower:
    """The tower of ``model.tower`` on the meta device, where tensors have shapes and no content.

    With ``local`` it is looked for on this machine only.

    Raises:
        ConfigError: there is no such folder, or its layers or tokens are not what the config asks for.
        Exception: what a tower raises that is not there or cannot be built without its weights.
    """
    import transformers

    path = resolve(config.tower, "tower", "model.tower")
    found = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
    kind = _class_of(found)
    own = getattr(kind, "config_class", None)  # of a full CLIP config, the vision part
    processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False, local_files_only=local)
    with torch.device("meta"):
        model = kind._from_config(own.from_pretrained(path)) if own else kind.from_config(found)
    return _tower(model, processor, config)


def read_tower(config: ModelConfig) -> tuple[Any, Any, set[str]]:
    """The model of transformers that ``model.tower`` names, whole and in float32, its image processor, and the names of
    weights that its files lack. ConfigError if it cannot be loaded."""
    import transformers

    path = resolve(config.tower, "tower", "model.tower")
    with loading("model.tower", config.tower):
        processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)
        loader = _class_of(transformers.AutoConfig.from_pretrained(path))
        model, absent = load_whole(loader, path, dtype=torch.float32)
    return model, processor, absent


def load_tower(config: ModelConfig) -> VisionTower:
    """The vision tower that ``model.tower`` names, in ``model.tower_dtype``, frozen.

    Weights that no feature depends on may be absent, such as the pooler of a ViT that was a classifier: they are zero.

    Raises:
        ConfigError: it cannot be loaded or read, or its files lack weights that are read.
    """
    model, processor, absent = read_tower(config)
    tower = _tower(model, processor, config)
    kept = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, value in kept:
        if name in absent and value.is_floating_point():
            value.fill_(math.nan)
            if not tower.encode(tower.preprocess([BLANK])).isfinite().all():
                refuse("model.tower", config.tower, [name])
            value.zero_()
    return tower


def _class_of(config: Any) -> Any:
    import transformers

    return getattr(transformers, VISION_CLASSES.get(config.model_type, "AutoModel"))


def _tower(model: Any, processor: Any, config: ModelConfig) -> VisionTower:
    read = (config.layers, config.keep_cls, config.token_grid, config.pixel_shuffle)
    return VisionTower(model, processor, *read, dtype=DTYPES[config.tower_dtype])


def check_grid(grid: tuple[int, int], token_grid: int, pixel_shuffle: int) -> None:
    """ConfigError if a tower's grid (rows, columns) is not square, too small, or no multiple of the factor."""
    rows, columns = grid
    gives = f"but the tower gives {rows} x {columns} tokens"
    if token_grid and (rows != columns or token_grid > rows):
        raise ConfigError(f"model.token_grid={token_grid} needs a square grid of at least that side, {gives}")
    if pixel_shuffle > 1 and (rows != columns or (token_grid or rows) % pixel_shuffle):
        raise ConfigError(f"model.pixel_shuffle={pixel_shuffle} needs a square grid that it divides, {gives}")


def average(features: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Means over (nearly) equal parts of the grid (H, W): ``[B, H * W, d]``, row by row, to ``[B, side * side, d]``."""
    maps = features.transpose(1, 2).unflatten(2, grid)
    return nn.functional.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)


def pixel_shuffle(features: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Space to depth: every r x r neighbours become one token that holds them row by row.

    Token (i, j) is the concatenation of tokens (r i + a, r j + b) for a, b = 0 .. r - 1, b fastest: a permutation of
    the numbers, the inverse of the sub-pixel shuffle of Shi et al., CVPR 2016, arXiv 1609.05158. For image tokens:
    InternVL 1.5 (Chen et al. 2024, arXiv 2404.16821) and Idefics3 (Laurençon et al. 2024, arXiv 2408.12637).

    ``[B, H * W, d]``, row by row, becomes ``[B, H * W / r^2, d * r^2]``.

    >>> pixel_shuffle(torch.arange(4.0).view(1, 4, 1), (2, 2), 2).tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]
    """
    rows, columns = grid
    cells = features.unflatten(1, (rows // factor, factor, columns // factor, factor))
    return cells.transpose(2, 3).flatten(3).flatten(1, 2)
