"""Batches of pictures and captions, and a projector, for ``ProjectorAlignment`` under a ``lightning.Trainer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from fedcmp.data.collate import CaptionEncoder, collate
from fedcmp.data.images import to_rgb
from fedcmp.data.records import Sample
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.seeding import torch_rng
from fedcmp.types import Batch, Params


@dataclass(frozen=True)
class Collate:
    """Items ``(picture, caption)`` to a batch: the ``collate_fn`` of a ``torch.utils.data.DataLoader``."""

    tower: VisionTower
    llm: LanguageModel
    max_tokens: int = 1024
    """The longest caption with its end; a longer one is cut and has no end."""
    lowercase: bool = False

    def __call__(self, items: Sequence[tuple[Image.Image, str]]) -> Batch:
        """A batch on the CPU.

        Returns:
            ``pixels``, as the tower takes them: ``[B, 3, H, W]`` for most; ``input_ids [B, L]``, each caption and its
            end, padded; ``labels [B, L]``, the same with -100 at padding. The module itself puts BOS and image tokens
            before them.

        Raises:
            DataError: a caption cannot be encoded.
            ValueError: a picture has a mode that is not read.
        """
        samples = [Sample(str(place), "", text, "", origin=f"item {place}") for place, (_, text) in enumerate(items)]
        tokens = CaptionEncoder.of(self.llm, self.max_tokens, lowercase=self.lowercase)(samples)
        pixels = self.tower.preprocess([to_rgb(picture) for picture, _ in items])
        return collate(tokens, self.llm.pad_id, pixels=pixels)


def new_projector(
    tower: VisionTower, llm: LanguageModel, config: ProjectorConfig | None = None, seed: int = 0
) -> Params:
    """A fresh projector from the tower's width d to the LLM's width D, as a run with this seed begins with it.

    >>> from fedcmp.models.backbones import load_llm, load_tower
    >>> from fedcmp.models.settings import ModelConfig
    >>> tuple(new_projector(load_tower(ModelConfig()), load_llm(ModelConfig()))["linear_1.weight"].shape)
    (96, 96)
    """
    return init_params(tower.width, llm.width, config or ProjectorConfig(), torch_rng(seed, "projector"))
