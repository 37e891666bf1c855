"""Frozen vision towers: which hidden states are read, which tokens are kept, and how many are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fedcmp.errors import ConfigError
from fedcmp.models.blocks import count_prefix, find_blocks, read_states
from fedcmp.models.families import VISION_CLASSES
from fedcmp.models.loading import freeze, hash_weights
from fedcmp.models.tokens import average, check_grid, pixel_shuffle


class VisionTower(nn.Module):
    """A frozen tower: pictures to ``[B, T, d]`` features. Always in eval mode; blocks after those read are dropped.

    Args:
        model: a vision model of transformers; its blocks are dropped in place.
        processor: its image processor.
        feature_layer: a layer or several, as ``model.feature_layer``; several are concatenated on the feature axis, as
            Llava of transformers does for a list of ``vision_feature_layer``.
        keep_cls: keep the tokens before the patches.
        token_grid: average the grid to this many a side; 0: no.
        pixel_shuffle: fold r x r tokens into one; 1: no.
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
        self.model = model
        self.processor = processor
        self.token_grid, self.pixel_shuffle = token_grid, pixel_shuffle
        layers = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
        # stages of a pyramid differ in width and grid: only what comes out of the last is a feature map
        blocks = None if hasattr(model.config, "depths") else find_blocks(model)
        self.is_map = blocks is None
        self.num_prefix = 0 if self.is_map else count_prefix(model)
        self.has_cls = self.num_prefix > 0
        self.drop_cls = self.has_cls and not keep_cls
        self.depths = _depths(layers, blocks)
        if blocks is not None:
            del blocks[max(1, *self.depths) :]
        self.blocks = list(blocks or ())
        freeze(model)
        with torch.inference_mode():
            device = next(model.parameters()).device  # meta, where only shapes are wanted
            probe = self.preprocess([Image.new("RGB", (64, 64))]).to(device)
            states = self._states(probe)
            self.grid = self._find_grid(probe, states)
            check_grid(self.grid, token_grid, pixel_shuffle)
            self.num_tokens, self.width = self._select(states).shape[1:]
        read = [_preprocessing(processor), layers[0] if len(layers) == 1 else layers, self.drop_cls, token_grid]
        # what follows stands there only where it matters, so that caches older than it live on
        if pixel_shuffle > 1:
            read.append(f"pixel_shuffle={pixel_shuffle}")
        if states[0].dim() == 3 and model.config.model_type not in VISION_CLASSES:
            read.append(f"prefix={self.num_prefix}")
        if dtype != torch.float32:
            read.append(str(dtype))
        self.fingerprint = "" if device.type == "meta" else hash_weights(model, *read)
        """Changes with the weights, the preprocessing, or what is read of the tower: the key of the feature cache."""
        model.to(dtype)

    def train(self, mode: bool = True) -> VisionTower:
        return super().train(False)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures to pixels: ``[B, 3, H, W]``, or ``[B, T, 3 * patch^2]`` for towers that take patches."""
        pictures, options = list(images), {}
        if self._naflex_side:
            side = self._naflex_side * self.processor.patch_size
            pictures = [picture.resize((side, side), self.processor.resample) for picture in pictures]
            options["max_num_patches"] = self._naflex_side**2
        pixels: Tensor = self.processor(images=pictures, return_tensors="pt", **options)["pixel_values"]
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels to features ``[B, T, d]`` in the tower's dtype."""
        return self._select(self._states(pixels))

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Tensor:
        """Pixels to features ``[B, T, d]`` in float16, as a cache keeps them, a few pictures at a time."""
        # on a CPU large activations cost page faults: 2.4 times slower
        parts = pixels.split(64 if pixels.is_cuda else 8)
        return torch.cat([self.encode(part).to(torch.float16) for part in parts])

    @property
    def takes_pixels(self) -> bool:
        """Whether the model is given pictures, and not patches that were cut before."""
        return not self._naflex_side

    @property
    def _naflex_side(self) -> int:
        """Patches a side of SigLIP2's towers of any shape (NaFlex), 0 for others.

        Their pictures keep their aspect ratio and have masks; ours are made square, so that all have T tokens.
        """
        return math.isqrt(getattr(self.processor, "max_num_patches", 0))

    def _states(self, pixels: Tensor) -> list[Tensor]:
        """What the tower gives, whole: ``[B, T', d]`` for each layer, or one map ``[B, d, H, W]``."""
        inputs: dict[str, Any] = {"pixel_values": pixels.to(dtype=next(self.model.parameters()).dtype)}
        if self._naflex_side:
            shapes = torch.full((len(pixels), 2), self._naflex_side, device="cpu")  # it is read number by number
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
        if self.is_map or patch is None or pixels.dim() != 4:
            rows, columns = (side, side) if side * side == tokens else (1, tokens)
        else:
            high, wide = patch if isinstance(patch, (list, tuple)) else (patch, patch)
            rows, columns = pixels.shape[2] // high, pixels.shape[3] // wide
        if rows * columns != tokens or (self.is_map and rows != columns):
            raise ConfigError(
                f"model.tower: a tower of type {self.model.config.model_type} gives {tokens} image tokens, which are "
                f"no grid of patches ({rows} x {columns}); expected one token a patch, in their order"
            )
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
            raise ConfigError(
                f"model.feature_layer is {list(layers)}, but the tower gives feature maps, of which only the last is "
                "read; expected one number"
            )
        return []
    count = len(blocks)
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise ConfigError(
                f"model.feature_layer is {layer}, but the tower has only {count} blocks; expected {-count - 1} to "
                f"{count}"
            )
    return [layer if layer >= 0 else count + 1 + layer for layer in layers]


def _preprocessing(processor: Any) -> Any:
    return processor.to_json_string() if hasattr(processor, "to_json_string") else processor
